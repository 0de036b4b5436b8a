"""The load generator: what it sends, what it counts, and from when, against a real gRPC server over TLS."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import load
from bench.http2 import NO_STATUS
from bench.load import PATH, Schedule, Spec, Stretch
from bench.processes import ProcessGoneError, cpu_seconds, machine_seconds, memory_bytes
from services.payment.domain.payment import State
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb

VENDORS = [(f"users/vendor-{number}", 12.9 + number / 1000, 77.5) for number in range(5)]
SUCCESS = pb.CreatePaymentResponse(payment=payment_pb2.Payment(state=State.SUCCESS))


class Gateway:
    """Answers payments as it is told to.

    Attributes:
        answer: Request and context to a response; may wait or abort.
        seen: Every request, and the token it came with.
        at_once: The most calls it ever had in hand.
    """

    def __init__(self, port, ca_file):
        self.port = port
        self.ca_file = ca_file
        self.answer = self._success
        self.seen = []
        self.at_once = 0
        self._in_hand = 0

    def spec(self, *stretches, **changes):
        fields = {
            "host": "127.0.0.1",
            "port": self.port,
            "ca_file": str(self.ca_file),
            "server_name": "payment.tallystick.internal",
            "payers": [f"token-{number}" for number in range(10)],
            "vendors": VENDORS,
            "currency_code": "INR",
            "stretches": stretches,
            "patience": 5.0,
            "connections": 2,
            "seed": 1,
            "processes": {"payment": os.getpid()},
        }
        return Spec(**fields | changes)

    async def offered(self, *stretches, **changes):
        """What comes of a load; made by a thread, so that this loop can answer it."""
        return await asyncio.to_thread(load.offer, self.spec(*stretches, **changes))

    async def serve(self, request, context):
        token = dict(context.invocation_metadata())["authorization"]
        self.seen.append((request, token))
        self._in_hand += 1
        self.at_once = max(self.at_once, self._in_hand)
        try:
            return await self.answer(request, context)
        finally:
            self._in_hand -= 1

    async def _success(self, request, context):
        return SUCCESS


@asynccontextmanager
async def a_gateway(tls, *options):
    server = grpc.aio.server(options=options)
    chain = [(tls.key_file.read_bytes(), tls.certificate_file.read_bytes())]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(chain))
    gateway = Gateway(port, tls.ca_file)
    _, service, method = PATH.split("/")
    handler = grpc.unary_unary_rpc_method_handler(
        gateway.serve,
        request_deserializer=pb.CreatePaymentRequest.FromString,
        response_serializer=pb.CreatePaymentResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {method: handler})]
    )
    await server.start()
    try:
        yield gateway
    finally:
        await server.stop(0)


@pytest.fixture
async def gateway(tls_for):
    async with a_gateway(tls_for("payment")) as running:
        yield running


async def test_an_open_loop_makes_every_call_it_planned_and_each_is_another_one(gateway):
    outcome = await gateway.offered(Stretch("all", 0.5, rate=200))

    assert outcome.statuses == [0] * 100
    assert outcome.states == [State.SUCCESS] * 100
    assert outcome.not_made == [0]
    requests = {request.request_id: (request, token) for request, token in gateway.seen}
    assert set(requests) == set(outcome.request_ids)
    assert len(requests) == 100
    for number, request_id in enumerate(outcome.request_ids):
        request, token = requests[request_id]
        assert token == f"Bearer token-{number % 10}", "each payer pays in turn"
        assert request.vendor == VENDORS[outcome.vendors[number]][0]
        assert request.amount.minor_units == outcome.amounts[number]
        assert request.amount.currency_code == "INR"


async def test_a_fifth_of_payments_goes_to_the_first_vendor_at_least_and_a_hundredth_is_far_away(
    gateway,
):
    await gateway.offered(Stretch("all", 0.5, rate=400))

    to_first = [request for request, _ in gateway.seen if request.vendor == VENDORS[0][0]]
    assert len(to_first) >= 40
    places = {name: (latitude, longitude) for name, latitude, longitude in VENDORS}
    away = [
        abs(request.position.latitude - places[request.vendor][0]) for request, _ in gateway.seen
    ]
    assert sum(distance > 0.5 for distance in away) == 2
    assert sorted(away)[-3] < 0.06, "everybody else is within some kilometres"


async def test_the_same_seed_makes_the_same_calls_and_another_one_makes_others(gateway):
    stretch = Stretch("all", 0.1, rate=100)

    first = await gateway.offered(stretch, seed=1)
    again = await gateway.offered(stretch, seed=1)
    other = await gateway.offered(stretch, seed=2)

    assert first.request_ids == again.request_ids
    assert first.amounts == again.amounts
    assert not set(first.request_ids) & set(other.request_ids)


async def test_latency_counts_from_when_a_call_was_due_though_it_could_not_be_made(tls_for):
    async with a_gateway(tls_for("payment"), ("grpc.max_concurrent_streams", 1)) as gateway:

        async def slow(request, context):
            await asyncio.sleep(0.05)
            return SUCCESS

        gateway.answer = slow
        # Fifty calls in half a second, of which the server takes one after the other.
        outcome = await gateway.offered(Stretch("all", 0.5, rate=100), connections=1)

    assert outcome.statuses == [0] * 50
    assert gateway.at_once <= 2, "but for the first, sent before the server had said how many"
    assert outcome.latencies[-1] > 1.2, "2.5 s of work was due within 0.5 s"
    assert outcome.lags[-1] > 1.0
    assert outcome.latencies == pytest.approx(sorted(outcome.latencies), abs=0.1)


async def test_a_stalled_server_is_seen_by_every_call_that_was_due_meanwhile(gateway):
    stalled = asyncio.Event()

    async def after_the_stall(request, context):
        if not stalled.is_set():
            stalled.set()
            await asyncio.sleep(0.4)
            gateway.answer = gateway._success
            opened.set()
        await opened.wait()
        return SUCCESS

    opened = asyncio.Event()
    gateway.answer = after_the_stall

    outcome = await gateway.offered(Stretch("all", 0.8, rate=100))

    early = outcome.latencies[:20]
    assert all(latency > 0.15 for latency in early)
    # A tenth of a second earlier: answers that are ready at once do not come in order to the millisecond.
    assert all(first > later for first, later in zip(early, early[10:], strict=False))


async def test_refusals_are_counted_by_status_and_tell_of_no_payment(gateway):
    async def sometimes(request, context):
        if request.amount.minor_units % 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too much is waiting.")
        return SUCCESS

    gateway.answer = sometimes

    outcome = await gateway.offered(Stretch("all", 0.5, rate=200))

    expected = [8 if amount % 2 else 0 for amount in outcome.amounts]
    assert outcome.statuses == expected
    assert outcome.states == [0 if status else State.SUCCESS for status in expected]
    assert None not in outcome.latencies


async def test_an_answer_whose_headers_take_several_frames_is_read(gateway):
    async def at_length(request, context):
        context.set_trailing_metadata([(f"x-said-{number}", "y" * 7_000) for number in range(6)])
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    gateway.answer = at_length
    outcome = await gateway.offered(Stretch("all", 0.1, rate=100))

    assert outcome.statuses == [grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]] * 10


async def test_what_is_never_answered_ends_with_patience_and_counts_as_no_answer(gateway):
    async def never(request, context):
        await asyncio.sleep(60)

    gateway.answer = never

    outcome = await gateway.offered(Stretch("all", 0.2, rate=50), patience=0.5)

    assert outcome.statuses == [NO_STATUS] * 10
    assert outcome.latencies == [None] * 10
    assert outcome.ended == pytest.approx(0.7, abs=0.3)


async def test_calls_there_was_no_room_for_are_told_of(tls_for):
    async with a_gateway(tls_for("payment"), ("grpc.max_concurrent_streams", 1)) as gateway:

        async def never(request, context):
            await asyncio.sleep(60)

        gateway.answer = never
        outcome = await gateway.offered(Stretch("all", 0.5, rate=100), patience=0.2, connections=1)

    assert len(outcome.request_ids) + outcome.not_made[0] == 50
    assert outcome.not_made[0] > 40


async def test_a_closed_loop_keeps_so_many_in_flight(gateway):
    async def slow(request, context):
        await asyncio.sleep(0.02)
        return SUCCESS

    gateway.answer = slow

    outcome = await gateway.offered(Stretch("all", 0.5, in_flight=7))

    assert gateway.at_once == 7
    assert len(outcome.statuses) > 50
    assert set(outcome.statuses) == {0}


async def test_stretches_follow_each_other_and_their_calls_are_told_apart(gateway):
    stretches = [
        Stretch("one", 0.2, rate=50),
        Stretch("two", 0.2, rate=100),
        Stretch("3", 0.1, 0, 2),
    ]

    outcome = await gateway.offered(*stretches)

    assert outcome.stretches[:10] == [0] * 10
    assert outcome.stretches[10:30] == [1] * 20
    assert set(outcome.stretches[30:]) == {2}
    assert len(outcome.requests(1)) == 20
    assert outcome.dues[10] == pytest.approx(0.2, abs=0.001)
    assert len(outcome.cpu_seconds) == 4, "as each begins, and in the end"
    assert set(outcome.cpu_seconds[0]) == {"payment", "client", "machine"}
    used = [sample["client"] for sample in outcome.cpu_seconds]
    assert used == sorted(used)


async def test_a_connection_the_gateway_ends_is_replaced_and_what_was_on_its_way_is_answered(
    tls_for,
):
    ends_soon = (("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", 2_000))
    async with a_gateway(tls_for("payment"), *ends_soon) as gateway:
        outcome = await gateway.offered(Stretch("all", 1.0, rate=100))

    assert outcome.connections_lost >= 2
    assert outcome.statuses == [0] * 100


async def test_a_gateway_that_is_not_there_is_an_error(gateway):
    spec = gateway.spec(Stretch("all", 0.1, rate=10), port=1)

    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(load.offer, spec)


async def test_a_gateway_with_a_strangers_certificate_is_an_error(gateway):
    spec = gateway.spec(Stretch("all", 0.1, rate=10), server_name="somebody.else")

    with pytest.raises(OSError, match="certificate"):
        await asyncio.to_thread(load.offer, spec)


async def test_a_process_that_ends_while_it_is_measured_is_an_error(gateway):
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=PIPE)

    async def ends_it(request, context):
        if child.returncode is None:
            child.kill()
            await child.wait()
        return SUCCESS

    gateway.answer = ends_it
    spec = gateway.spec(Stretch("all", 0.1, rate=50), processes={"fraud": child.pid})

    with pytest.raises(ProcessGoneError, match="fraud"):
        await asyncio.to_thread(load.offer, spec)


def test_a_zombie_is_gone_too():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(ProcessGoneError):
            cpu_seconds({"fraud": child.pid})
    finally:
        child.wait()


def test_a_process_that_works_uses_cpu_and_the_machine_at_least_as_much():
    before, machine = cpu_seconds({"own": os.getpid()})["own"], machine_seconds()
    while cpu_seconds({"own": os.getpid()})["own"] < before + 0.1:
        sum(range(10_000))

    assert machine_seconds() - machine > 0.05


def test_a_spec_survives_its_file(tmp_path):
    spec = Gateway(1, tmp_path).spec(Stretch("one", 1.0, rate=2), Stretch("two", 3.0, in_flight=4))

    found = Spec.from_json(spec.to_json())

    assert found == replace(
        spec, stretches=list(spec.stretches), vendors=[list(vendor) for vendor in VENDORS]
    )


@given(
    rate=st.floats(1, 500),
    seconds=st.floats(0.1, 5),
    looks=st.lists(st.floats(0, 10), max_size=30),
)
def test_an_open_loops_calls_are_due_evenly_whenever_one_looks(rate, seconds, looks):
    stretch = Stretch("all", seconds, rate=rate)
    schedule, dues = Schedule([stretch]), []

    for now in [*sorted(looks), 10.0]:
        while (due := schedule.take(now, 0)) is not None:
            assert due <= now
            dues.append(due)

    assert schedule.is_over
    assert dues == pytest.approx([number / rate for number in range(stretch.planned)])


def test_calls_of_an_open_loop_that_wait_for_room_stay_due_when_it_is_over():
    schedule = Schedule([Stretch("one", 1.0, rate=10), Stretch("two", 1.0, rate=10)])

    dues = [schedule.take(5.0, 0) for _ in range(20)]

    assert dues == pytest.approx([number / 10 for number in range(20)])
    assert schedule.take(5.0, 0) is None
    assert schedule.is_over


async def test_a_hot_vendor_can_be_given_everything(gateway):
    await gateway.offered(Stretch("all", 0.5, rate=100), hot_every=1)

    assert {request.vendor for request, _ in gateway.seen} == {VENDORS[0][0]}


async def test_in_a_pause_nothing_is_called(gateway):
    stretches = [Stretch("one", 0.1, rate=50), Stretch("pause", 0.3), Stretch("two", 0.1, rate=50)]

    outcome = await gateway.offered(*stretches)

    assert outcome.stretches == [0] * 5 + [2] * 5
    assert outcome.dues[5] == pytest.approx(0.4, abs=0.001)


def test_memory_is_what_the_kernel_says_and_a_process_that_is_gone_is_an_error():
    found = memory_bytes({"this": os.getpid()})

    assert 10 << 20 < found["this"] < 10 << 30
    with pytest.raises(ProcessGoneError, match="fraud"):
        memory_bytes({"fraud": 2**22})
