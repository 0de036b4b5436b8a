"""kill -9 in the middle of load, on the whole stack: no money is lost or made, and nobody is left guessing."""

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest
from uuid_utils import uuid4

from bench import books
from bench.seed import CURRENCY, seed
from cli.demo.client import ApiError, Gateway, Operator, send
from services import names
from tallystick.admin.v1 import review_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick.type.v1 import money_pb2, position_pb2
from tests import stacks
from tests.eventually import eventually, served

SUCCESS, FLAGGED = payment_pb2.Payment.STATE_SUCCESS, payment_pb2.Payment.STATE_FLAGGED
DEGRADED = payment_pb2.Risk.DECISION_DEGRADED
# After these a client asks again.
NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# Wide enough that what is refused here is refused for another reason.
WIDE = {
    "TALLYSTICK_RATE_PAYMENT": "100000/100000/1000",
    "TALLYSTICK_RATE_READ": "100000/100000/1000",
}


class World:
    """A running stack, and people in it."""

    def __init__(self, stack, channel, found):
        self.stack = stack
        self.payments = payment_service_pb2_grpc.PaymentServiceStub(channel)
        self.tokens = [(("authorization", f"Bearer {token}"),) for token in found.tokens]
        self.vendors = found.vendors
        self.seeded = found
        self.sent = 0
        self.asked = {}

    def a_payment(self, minor_units=1_00, *, away=0.0):
        """(request, token) of the next payment, by the next payer to the next vendor."""
        self.sent += 1
        vendor, latitude, longitude = self.vendors[self.sent % len(self.vendors)]
        request = payment_service_pb2.CreatePaymentRequest(
            request_id=str(uuid4()),
            vendor=vendor,
            amount=money_pb2.Money(minor_units=minor_units, currency_code=CURRENCY),
            position=position_pb2.Position(latitude=latitude + away, longitude=longitude),
        )
        payer = self.sent % len(self.tokens)
        self.asked[request.request_id] = (
            self.seeded.payers[payer],
            names.last_id(vendor),
            minor_units,
        )
        return request, self.tokens[payer]

    async def pay(self, request, token):
        call = self.payments.CreatePayment(request, metadata=token, timeout=5)
        return (await call).payment

    async def find(self, request, token):
        """The payment a request made, or None."""
        asked = payment_service_pb2.GetPaymentRequest(request_id=request.request_id)
        try:
            return (await served(send, self.payments.GetPayment, asked, token)).payment
        except ApiError as error:
            if error.reason != "PAYMENT_NOT_FOUND":
                raise
            return None

    def pid(self, name):
        return self.stack.endpoints.processes[name]

    def kill(self, name):
        """kill -9; answers what waits until the supervisor has put another in its place."""
        killed = self.pid(name)
        os.kill(killed, signal.SIGKILL)

        async def back():
            await eventually(lambda: self.pid(name) != killed, seconds=30)

        return back

    async def check_books(self, told):
        """Hold the database against the states clients were told in the end, by request id."""
        url = self.stack.endpoints.services["payment"].database_url
        paid = {found: books.Paid(*self.asked[found], state) for found, state in told.items()}
        found = await books.check(url, books.Told(paid), self.seeded)
        assert found.wrong == []


async def with_world(directory, work, *options, **variables):
    stack = await asyncio.to_thread(
        stacks.start, directory, *options, environment={**WIDE, **variables}
    )
    try:
        at = stack.endpoints
        profile = options[-1] if options else "dev"
        key_file = directory / "run" / "data" / profile / "key-encryption-key"
        found = await seed(at, key_file, payers=40, vendors=3)
        authority = await asyncio.to_thread(Path(at.ca_file).read_bytes)
        credentials = grpc.ssl_channel_credentials(root_certificates=authority)
        async with grpc.aio.secure_channel(at.grpc, credentials) as channel:
            await work(World(stack, channel, found))
    finally:
        code = await asyncio.to_thread(stack.stop)
    assert code == 0


@pytest.mark.parametrize("profile", ["dev", "mysql"])
async def test_a_payment_service_killed_under_load_loses_nothing_and_pays_nobody_twice(
    profile, tmp_path
):
    async def story(world):
        answered, unanswered = {}, []

        async def client():
            for _ in range(15):
                request, token = world.a_payment()
                try:
                    answered[request.request_id] = (request, token, await world.pay(request, token))
                except grpc.aio.AioRpcError as error:
                    if error.code() not in NO_ANSWER:
                        raise
                    unanswered.append((request, token))

        async def killer():
            await eventually(lambda: len(answered) >= 60)
            await world.kill("payment")()

        await asyncio.gather(killer(), *(client() for _ in range(20)))

        assert len(answered) + len(unanswered) == 300
        assert unanswered, "it was killed while calls were under way"
        told = {name: paid.state for name, (_, _, paid) in answered.items()}
        for request, token in unanswered:
            before = await world.find(request, token)
            paid = await served(world.pay, request, token)
            assert before is None or before.name == paid.name
            assert paid.state == SUCCESS
            told[request.request_id] = paid.state
        for request, token, paid in answered.values():
            assert (await world.find(request, token)).name == paid.name
            assert (await world.pay(request, token)).name == paid.name
        await world.check_books(told)

    await with_world(tmp_path, story, "--profile", profile)


async def test_while_the_fraud_service_hangs_small_payments_pass_and_large_ones_wait(tmp_path):
    async def story(world):
        at = world.stack.endpoints
        fraud = world.pid("fraud")
        os.kill(fraud, signal.SIGSTOP)
        try:
            small = await world.pay(*world.a_payment(500_00))
            large = await world.pay(*world.a_payment(500_01))
            from_afar = await world.pay(*world.a_payment(100_00, away=3.0))
        finally:
            os.kill(fraud, signal.SIGCONT)

        assert (small.state, small.risk.decision) == (SUCCESS, DEGRADED)
        assert (large.state, large.risk.decision) == (FLAGGED, DEGRADED)
        assert (from_afar.state, from_afar.risk.decision) == (SUCCESS, DEGRADED)
        async with Gateway(at.grpc, Path(at.ca_file)) as gateway:
            admin = Operator.of(await gateway.sign_in(at.admin_user, at.admin_password))
            case = await admin.open_case(from_afar.name)
            assert case.kind == review_service_pb2.Case.KIND_LATE_ASSESSMENT
            held = await admin.open_case(large.name)
            await admin.decide(held.name, approve=True, reason="called the payer")
        told = {paid.request_id: SUCCESS for paid in (small, large, from_afar)}
        await world.check_books(told)

    await with_world(tmp_path, story)


async def test_whatever_else_is_killed_payments_go_on_and_the_rest_catches_up(tmp_path):
    async def story(world):
        at, told = world.stack.endpoints, {}

        async def pays(minor_units=1_00, away=0.0):
            request, token = world.a_payment(minor_units, away=away)
            paid = await served(world.pay, request, token)
            told[request.request_id] = paid.state
            return paid

        for name in ("user", "gateway", "valkey", "fraud", "envoy"):
            back = world.kill(name)
            assert (await pays()).state == SUCCESS, name
            await back()
            assert (await pays()).state == SUCCESS, name

        back = world.kill("admin")
        held = await pays(600_00, away=3.0)
        assert held.state == FLAGGED
        await back()
        async with Gateway(at.grpc, Path(at.ca_file)) as gateway:
            session = await served(gateway.sign_in, at.admin_user, at.admin_password)
            admin = Operator.of(session)
            case = await served(admin.open_case, held.name)
            await served(admin.decide, case.name, approve=True, reason="called the payer")
        told[held.request_id] = SUCCESS
        await world.check_books(told)

    await with_world(tmp_path, story)


async def test_a_database_that_is_killed_is_waited_for_and_the_books_are_right(tmp_path):
    async def story(world):
        first, token = world.a_payment()
        told = {first.request_id: (await world.pay(first, token)).state}
        back = world.kill("mariadb")
        request, token = world.a_payment()
        refusals = []
        try:
            await send(world.payments.CreatePayment, request, token)
        except ApiError as error:
            refusals.append(error)

        paid = await served(world.pay, request, token)
        await back()

        for refusal in refusals:
            assert refusal.reason == "DEPENDENCY_UNAVAILABLE"
            assert refusal.retry_after is not None
        told[request.request_id] = paid.state
        await world.check_books(told)

    await with_world(tmp_path, story, "--profile", "mysql")
