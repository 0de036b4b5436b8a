"""Payments offered to a gateway, cheaply enough that the generator does not eat what it measures.

What is sent is ordinary gRPC over TLS: a body, user, token and request_id of its own for every call. Open loop: calls
are due at a fixed rate, and latency counts from when a call was due, not from when it could be sent, so a stalled
server cannot hide behind the calls it kept from being made. Closed loop: a fixed number in flight, for capacities.

Run as a process of its own: `python -m bench.load SPEC OUTCOME`. It ends by itself, at the latest `patience` after the
last stretch.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uuid_utils import UUID

from bench.http2 import NO_STATUS, Call, Connection, literal, request_headers
from bench.processes import ProcessGoneError, cpu_seconds, machine_seconds
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.type.v1 import money_pb2, position_pb2

PATH = "/tallystick.payment.v1.PaymentService/CreatePayment"
CLIENT = "client"
MACHINE = "machine"

_OK = 0
# One payment in so many is made too far from every site to pass the fraud check: it is FLAGGED, and its money held.
_FAR_EVERY = 100
_FAR_DEGREES = 1.0
# About 5 km: within what the fraud check allows.
_NEAR_DEGREES = 0.05
_AMOUNT_MAX = 5_000
# Lost connections are opened anew; a gateway that loses more than these is not one to measure.
_CONNECTIONS_LOST_MAX = 20
_POLL_SECONDS = 0.001
# Calls made before answers are looked at again.
_CALLS_AT_ONCE = 64


@dataclass(frozen=True)
class Stretch:
    """A part of a load.

    Attributes:
        name: What its calls are known by.
        seconds: How long it lasts.
        rate: Calls a second, open loop, evenly spaced; 0 for a closed loop.
        in_flight: Calls in flight, closed loop. Nothing at all is a pause.
    """

    name: str
    seconds: float
    rate: float = 0.0
    in_flight: int = 0

    @property
    def planned(self) -> int:
        """Calls an open loop makes; 0 for a closed one, which makes what it can."""
        return round(self.rate * self.seconds)


@dataclass(frozen=True)
class Spec:
    """What to offer.

    Attributes:
        host: The gateway.
        port: Its port.
        ca_file: Who signed its certificate.
        server_name: The name in its certificate.
        payers: Token by payer; each pays in turn.
        vendors: `users/{uuid}` and position (latitude, longitude) of each.
        currency_code: Of every payment.
        stretches: One after the other, without a pause.
        patience: Seconds to wait for answers after the last stretch.
        connections: How many.
        seed: For amounts, vendors, request ids: the same seed makes the same calls.
        processes: Whose CPU is read as each stretch begins and in the end, by name.
        hot_every: One payment in so many goes to the first vendor whatever is drawn: 1 sends it all of them.
    """

    host: str
    port: int
    ca_file: str
    server_name: str
    payers: Sequence[str]
    vendors: Sequence[tuple[str, float, float]]
    currency_code: str
    stretches: Sequence[Stretch]
    patience: float
    connections: int
    seed: int
    processes: Mapping[str, int]
    hot_every: int = 5

    def to_json(self) -> str:
        """For a file; `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """What `to_json` wrote."""
        given: dict[str, Any] = json.loads(text)
        stretches = [Stretch(**stretch) for stretch in given.pop("stretches")]
        return cls(stretches=stretches, **given)


@dataclass
class Outcome:
    """What came of it: lists by call, in the order calls were made; all times in seconds from the beginning.

    Attributes:
        request_ids: Its `request_id`.
        payers: Index of who paid.
        vendors: Index of who was paid.
        amounts: Minor units.
        stretches: Index of the stretch it was due in.
        dues: When it was due; in a closed loop, when it was made.
        lags: How much later than that it was made.
        latencies: From due to answered; None when it never was.
        statuses: Its gRPC status; NO_STATUS when it ended without one, or not at all.
        states: What its client was told of the payment (`Payment.State`); 0 for anything but a payment.
        not_made: By stretch, calls that were due and never made: there was no room on any connection.
        cpu_seconds: CPU used so far, of this process (`client`), every process of the spec, and the whole machine
            (`machine`): as each stretch began, and in the end.
        ended: When the last answer had come, or patience was over.
        connections_lost: How many were.
    """

    request_ids: list[str] = field(default_factory=list)
    payers: list[int] = field(default_factory=list)
    vendors: list[int] = field(default_factory=list)
    amounts: list[int] = field(default_factory=list)
    stretches: list[int] = field(default_factory=list)
    dues: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    latencies: list[float | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    not_made: list[int] = field(default_factory=list)
    cpu_seconds: list[dict[str, float]] = field(default_factory=list)
    ended: float = 0.0
    connections_lost: int = 0

    def requests(self, stretch: int) -> list[str]:
        """Request ids of the calls that were due in the stretch at an index."""
        pairs = zip(self.request_ids, self.stretches, strict=True)
        return [request_id for request_id, found in pairs if found == stretch]


class Schedule:
    """When calls are due.

    Args:
        stretches: One after the other.
    """

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._stretches = stretches
        self._start = 0.0
        # The stretch it is in; their number when all are over.
        self.index = 0
        # Calls made in each.
        self.made = [0] * len(stretches)

    @property
    def is_over(self) -> bool:
        """No call is due any more."""
        return self.index == len(self._stretches)

    def take(self, now: float, in_flight: int) -> float | None:
        """When the next call was due, if it is by now: it is taken to be made. None: wait."""
        while not self.is_over:
            stretch = self._stretches[self.index]
            end = self._start + stretch.seconds
            if stretch.rate:
                made = self.made[self.index]
                if made < stretch.planned:
                    due = self._start + made / stretch.rate
                    if due > now:
                        return None
                    self.made[self.index] += 1
                    return due
            elif now < end:
                if in_flight >= stretch.in_flight:
                    return None
                self.made[self.index] += 1
                return now
            if now < end:
                return None
            self._start, self.index = end, self.index + 1
        return None


class _Source:
    """Makes up payments, one after the other."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._random = random.Random(spec.seed)  # noqa: S311 - a load, repeatable on purpose
        common = request_headers(PATH, spec.server_name)
        self._headers = [
            common + literal("authorization", f"Bearer {token}") for token in spec.payers
        ]

    def next(self, outcome: Outcome) -> tuple[bytes, bytes]:
        """Headers and message of the next call, which is put on record."""
        number, draw, vendors = len(outcome.request_ids), self._random, self._spec.vendors
        payer = number % len(self._headers)
        vendor = 0 if number % self._spec.hot_every == 0 else draw.randrange(len(vendors))
        name, latitude, longitude = vendors[vendor]
        request_id = str(UUID(int=draw.getrandbits(128), version=4))
        amount = draw.randint(1, _AMOUNT_MAX)
        away = _FAR_DEGREES if number % _FAR_EVERY == _FAR_EVERY - 1 else 0.0
        request = pb.CreatePaymentRequest(
            request_id=request_id,
            vendor=name,
            amount=money_pb2.Money(minor_units=amount, currency_code=self._spec.currency_code),
            position=position_pb2.Position(
                latitude=latitude + away + draw.uniform(-_NEAR_DEGREES, _NEAR_DEGREES),
                longitude=longitude + draw.uniform(-_NEAR_DEGREES, _NEAR_DEGREES),
                accuracy_meters=8,
            ),
            reference=f"order {number}",
        )
        outcome.request_ids.append(request_id)
        outcome.payers.append(payer)
        outcome.vendors.append(vendor)
        outcome.amounts.append(amount)
        return self._headers[payer], request.SerializeToString()


class _Offer:
    """One load on its way."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._source = _Source(spec)
        self._schedule = Schedule(spec.stretches)
        self._connections: list[Connection] = []
        self._outcome = Outcome()
        self._began = 0.0

    def run(self) -> Outcome:
        spec, outcome, schedule = self._spec, self._outcome, self._schedule
        ends = sum(stretch.seconds for stretch in spec.stretches)
        for _ in range(spec.connections):
            self._connections.append(self._connect())
        self._sample_cpu()
        self._began = time.perf_counter()
        while (now := self._now()) < ends + spec.patience:
            stretch = schedule.index
            self._make_due(now)
            for _ in range(stretch, min(schedule.index, len(spec.stretches) - 1)):
                self._sample_cpu()
            if schedule.is_over and not any(one.calls for one in self._connections):
                break
            self._exchange()
        outcome.ended = self._now()
        self._sample_cpu()
        outcome.not_made = [
            max(0, stretch.planned - made)
            for stretch, made in zip(spec.stretches, schedule.made, strict=True)
        ]
        return outcome

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _connect(self) -> Connection:
        spec = self._spec
        return Connection(
            (spec.host, spec.port), ca_file=spec.ca_file, server_name=spec.server_name
        )

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _make_due(self, now: float) -> None:
        outcome, schedule = self._outcome, self._schedule
        in_flight = sum(len(one.calls) for one in self._connections)
        for _ in range(_CALLS_AT_ONCE):
            connection = min(self._connections, key=_load)
            if not connection.has_room:
                return  # what is due stays due, and its latency counts from then
            due = schedule.take(now, in_flight)
            if due is None:
                return
            number = len(outcome.request_ids)
            headers, message = self._source.next(outcome)
            connection.call(headers, message, Call(number))
            in_flight += 1
            outcome.stretches.append(schedule.index)
            outcome.dues.append(round(due, 6))
            outcome.lags.append(round(self._now() - due, 6))
            outcome.latencies.append(None)
            outcome.statuses.append(NO_STATUS)
            outcome.states.append(0)

    def _exchange(self) -> None:
        for connection in self._connections:
            connection.flush()
        reading = [one.socket for one in self._connections]
        writing = [one.socket for one in self._connections if one.wants_to_write]
        select.select(reading, writing, [], _POLL_SECONDS)
        for place, connection in enumerate(self._connections):
            for call in connection.receive():
                self._record(call)
            if not connection.takes_calls and not connection.calls:
                self._replace(place)

    def _replace(self, place: int) -> None:
        self._outcome.connections_lost += 1
        if self._outcome.connections_lost > _CONNECTIONS_LOST_MAX:
            raise ConnectionError(f"The gateway closed {_CONNECTIONS_LOST_MAX + 1} connections.")
        self._connections[place].close()
        self._connections[place] = self._connect()

    def _record(self, call: Call) -> None:
        outcome, number = self._outcome, call.number
        outcome.statuses[number] = call.status
        if call.status == NO_STATUS:
            return
        outcome.latencies[number] = round(self._now() - outcome.dues[number], 6)
        if call.status == _OK:
            answer = pb.CreatePaymentResponse.FromString(call.message)
            outcome.states[number] = answer.payment.state

    def _sample_cpu(self) -> None:
        used = cpu_seconds(self._spec.processes)
        own = {CLIENT: time.process_time(), MACHINE: machine_seconds()}
        self._outcome.cpu_seconds.append(used | own)


def _load(connection: Connection) -> int:
    return len(connection.calls) if connection.takes_calls else sys.maxsize


def offer(spec: Spec) -> Outcome:
    """Make the calls and wait for their answers, for a bounded time.

    Raises:
        OSError: the gateway does not answer, or closes one connection after the other.
        ProcessGoneError: a process of the spec ended.
    """
    load = _Offer(spec)
    try:
        return load.run()
    finally:
        load.close()


def main() -> None:
    """Offer what a file says and write what came of it to another."""
    try:
        outcome = offer(Spec.from_json(Path(sys.argv[1]).read_text()))
    except (OSError, ProcessGoneError) as error:
        sys.exit(f"bench.load: {error}")
    Path(sys.argv[2]).write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
