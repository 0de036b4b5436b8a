"""Payments offered over raw HTTP/2, cheaply enough that the generator does not eat what it measures.

A generated client costs about 200 µs of CPU a call, more than the gateway; framing by hand costs a third. What it
sends is ordinary gRPC over TLS: a distinct body, user, token and request_id for every call. Open loop: calls are due
at a fixed rate, and latency counts from when a call was due, not from when it could be sent, so a stalled server
cannot hide behind the calls it kept from being made. Closed loop: a fixed number in flight, for capacities.

Run as a process of its own: `python -m bench.load SPEC OUT`.
"""

from __future__ import annotations

import json
import random
import select
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import hpack

from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.type.v1 import money_pb2, position_pb2

PATH = "/tallystick.payment.v1.PaymentService/CreatePayment"

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW = 2**31 - 1
# Calls in flight on one connection; the gateway allows about a thousand.
_STREAMS_MAX = 900
_HOT_SHARE = 5  # one payment in so many goes to the first vendor
_NO_STATUS = -1
_BODY_BYTES_MAX = 4_096
_UNSENT_BYTES_MAX = 1 << 20
_BLOCKS_REMEMBERED = 1_000


@dataclass(frozen=True)
class Spec:
    """What to offer.

    Attributes:
        host: The gateway.
        port: Its port.
        ca_file: Who signed its certificate.
        payers: Token by payer; each pays in turn.
        vendors: `users/{uuid}` and position (latitude, longitude) of each; the first gets every fifth payment.
        currency_code: Of every payment.
        rate: Calls a second, open loop; 0 for closed loop.
        in_flight: Calls in flight, closed loop.
        seconds: How long to offer.
        warm_up: Seconds offered before that and not counted.
        patience: Seconds to wait for answers after the last call.
        connections: How many.
        seed: For amounts, vendors, request ids: the same seed makes the same calls.
    """

    host: str
    port: int
    ca_file: str
    payers: list[str]
    vendors: list[tuple[str, float, float]]
    currency_code: str
    rate: float
    in_flight: int
    seconds: float
    warm_up: float
    patience: float
    connections: int
    seed: int


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        seconds: From the first counted call's due time to the last counted answer.
        latencies: Seconds from due to answered, of every counted call that was answered with a payment.
        refused: Seconds from due to refused, of counted calls.
        statuses: How many counted calls ended with each gRPC status; -1: no answer.
        told: By request id, the state the client was told, also of calls not counted. 0: refused or no answer.
        client_seconds: CPU of this process while offering.
        calls: Calls made, counted or not.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    told: dict[str, int] = field(default_factory=dict)
    client_seconds: float = 0.0
    calls: int = 0


@dataclass
class _Call:
    request_id: str
    due: float
    counted: bool
    body: bytearray = field(default_factory=bytearray)
    status: int = _NO_STATUS


class _Connection:
    """One HTTP/2 connection, non-blocking."""

    def __init__(self, spec: Spec) -> None:
        context = ssl.create_default_context(cafile=spec.ca_file)
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection((spec.host, spec.port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(raw, server_hostname="localhost")
        self.socket.settimeout(0)
        settings = struct.pack(
            ">HIHI", 1, 0, 4, _WINDOW
        )  # no header table; a large window per stream
        self._out = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._out += _frame(_SETTINGS, 0, 0, settings)
        self._out += _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW - 65_535))
        self._in = bytearray()
        self._window = 65_535
        self._next_stream = 1
        self._statuses: dict[bytes, int | None] = {}
        self.calls: dict[int, _Call] = {}

    @property
    def has_room(self) -> bool:
        """Another call may be made now."""
        return (
            len(self.calls) < _STREAMS_MAX
            and self._window > _BODY_BYTES_MAX
            and len(self._out) < _UNSENT_BYTES_MAX
        )

    @property
    def wants_to_write(self) -> bool:
        """Something waits to be sent."""
        return bool(self._out)

    def call(self, headers: bytes, body: bytes, call: _Call) -> None:
        """Send one call."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self.calls[stream] = call
        message = b"\x00" + struct.pack(">I", len(body)) + body
        self._window -= len(message)
        self._out += _frame(_HEADERS, _END_HEADERS, stream, headers)
        self._out += _frame(_DATA, _END_STREAM, stream, message)

    def flush(self) -> None:
        """Send what the socket takes."""
        while self._out:
            try:
                sent = self.socket.send(self._out[: 1 << 16])
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            del self._out[:sent]

    def receive(self) -> list[_Call]:
        """Read what is there; answers the calls that ended."""
        while True:
            try:
                data = self.socket.recv(1 << 18)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not data:
                raise ConnectionError("The gateway closed a connection.")
            self._in += data
        ended: list[_Call] = []
        position, size = 0, len(self._in)
        while position + 9 <= size:
            length = int.from_bytes(self._in[position : position + 3], "big")
            if position + 9 + length > size:
                break
            kind, flags = self._in[position + 3], self._in[position + 4]
            stream = int.from_bytes(self._in[position + 5 : position + 9], "big") & _WINDOW
            payload = bytes(self._in[position + 9 : position + 9 + length])
            position += 9 + length
            self._handle(kind, flags, stream, payload, ended)
        del self._in[:position]
        return ended

    def _handle(
        self, kind: int, flags: int, stream: int, payload: bytes, ended: list[_Call]
    ) -> None:
        if kind == _HEADERS:
            call = self.calls[stream]
            status = self._grpc_status(payload)
            if status is not None:
                call.status = status
        elif kind == _DATA:
            self.calls[stream].body += payload
        elif kind == _WINDOW_UPDATE:
            if stream == 0:
                self._window += int.from_bytes(payload, "big")
            return
        elif kind in {_SETTINGS, _PING}:
            if not flags & _ACK:
                self._out += _frame(kind, _ACK, 0, payload if kind == _PING else b"")
            return
        elif kind == _GOAWAY:
            raise ConnectionError(
                f"The gateway says goodbye: {payload[8:].decode(errors='replace')}"
            )
        if kind == _RST_STREAM or (kind in {_HEADERS, _DATA} and flags & _END_STREAM):
            ended.append(self.calls.pop(stream))

    def _grpc_status(self, block: bytes) -> int | None:
        # With no header table a block means the same whenever it comes, so each is decoded once.
        if block not in self._statuses:
            headers = hpack.Decoder(max_header_list_size=1 << 20).decode(block, raw=True)
            status = next((value for name, value in headers if name == b"grpc-status"), None)
            if len(self._statuses) > _BLOCKS_REMEMBERED:  # blocks that hold a time or an id
                self._statuses.clear()
            self._statuses[block] = None if status is None else int(status)
        return self._statuses[block]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def _literal(name: str, value: str) -> bytes:
    return bytes(b"\x00" + _string(name) + _string(value))


def _string(text: str) -> bytes:
    data = text.encode()
    return bytes(hpack.hpack.encode_integer(len(data), 7)) + data


class _Offer:
    """Makes the calls, one after the other."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._random = random.Random(spec.seed)  # noqa: S311 - a load, repeatable on purpose
        common = b"\x83\x87" + _literal(":path", PATH) + _literal(":authority", "localhost")
        common += _literal("content-type", "application/grpc") + _literal("te", "trailers")
        self._headers = [
            common + _literal("authorization", f"Bearer {token}") for token in spec.payers
        ]
        self._number = 0

    def next(self) -> tuple[bytes, bytes, str]:
        """Headers, body and request id of the next call."""
        number, self._number = self._number, self._number + 1
        vendors, draw = self._spec.vendors, self._random
        vendor, latitude, longitude = (
            vendors[0] if number % _HOT_SHARE == 0 else draw.choice(vendors)
        )
        request_id = str(UUID(int=draw.getrandbits(128), version=4))
        request = pb.CreatePaymentRequest(
            request_id=request_id,
            vendor=vendor,
            amount=money_pb2.Money(
                minor_units=draw.randint(1, 5_000), currency_code=self._spec.currency_code
            ),
            position=position_pb2.Position(
                latitude=latitude + draw.uniform(-0.05, 0.05),
                longitude=longitude + draw.uniform(-0.05, 0.05),
                accuracy_meters=8,
            ),
            reference=f"order {number}",
        )
        headers = self._headers[number % len(self._headers)]
        return headers, request.SerializeToString(), request_id


def offer(spec: Spec) -> Outcome:
    """Make the calls and wait for their answers, for a bounded time.

    Raises:
        ConnectionError: the gateway ended a connection.
    """
    connections = [_Connection(spec) for _ in range(spec.connections)]
    outcome, source = Outcome(), _Offer(spec)
    clock = time.perf_counter
    began, cpu = clock(), time.process_time()
    counting, ends = began + spec.warm_up, began + spec.warm_up + spec.seconds
    last = counting
    while (now := clock()) < ends + spec.patience:
        if now < ends:
            _make_due(spec, source, connections, outcome, began=began, counting=counting, now=now)
        elif not any(connection.calls for connection in connections):
            break
        for connection in connections:
            connection.flush()
        writing = [one.socket for one in connections if one.wants_to_write]
        select.select([one.socket for one in connections], writing, [], 0.001)
        for connection in connections:
            for call in connection.receive():
                last = clock()
                _record(outcome, call, last)
    outcome.client_seconds = time.process_time() - cpu
    outcome.seconds = last - counting
    for connection in connections:
        for call in connection.calls.values():
            outcome.told[call.request_id] = 0
            outcome.statuses[_NO_STATUS] += call.counted
        connection.socket.close()
    return outcome


def _make_due(
    spec: Spec,
    source: _Offer,
    connections: list[_Connection],
    outcome: Outcome,
    *,
    began: float,
    counting: float,
    now: float,
) -> None:
    if spec.rate:
        due_count = int((now - began) * spec.rate) + 1 - outcome.calls
    else:
        due_count = spec.in_flight - sum(len(one.calls) for one in connections)
    for _ in range(min(due_count, 256)):
        connection = connections[outcome.calls % len(connections)]
        if not connection.has_room:
            return  # it stays due, and its latency counts from then
        due = began + outcome.calls / spec.rate if spec.rate else now
        headers, body, request_id = source.next()
        connection.call(headers, body, _Call(request_id, due, due >= counting))
        outcome.calls += 1


def _record(outcome: Outcome, call: _Call, now: float) -> None:
    state = 0
    if call.status == 0:
        state = pb.CreatePaymentResponse.FromString(bytes(call.body[5:])).payment.state
    outcome.told[call.request_id] = state
    if call.counted:
        outcome.statuses[call.status] += 1
        (outcome.latencies if call.status == 0 else outcome.refused).append(now - call.due)


def main() -> None:
    """Offer what a file says and write what came of it to another."""
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    outcome = offer(Spec(**given))
    Path(sys.argv[2]).write_text(json.dumps(vars(outcome)))


if __name__ == "__main__":
    main()
