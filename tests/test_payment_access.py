"""Who may call the payment service, and who no longer may."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from services.payment.audit import check
from services.rpc import channel
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.payment.v1 import payment_service_pb2_grpc
from tallystick.payment.v1 import wallet_service_pb2 as wallet_pb
from tests.event_stream import an_event, publish
from tests.eventually import eventually
from tests.payment_stack import Person, a_payment, a_payout, a_refund, a_top_up, refused, to_offline

pytestmark = pytest.mark.parametrize("dialect", ["sqlite"])


EVERY_RPC = {
    "CreatePayment",
    "BatchCreatePayments",
    "ListPayments",
    "RefundPayment",
    "GetWallet",
    "TopUp",
    "MoveBalance",
    "ListTransfers",
    "Payout",
    "WatchPayments",
}


def calls_of(who, person, vendor):
    """Every RPC that needs a role, called by `who`."""
    payment = pb.ListPaymentsRequest(parent=person.name, currency_code="INR")
    refund = a_refund(type("Payment", (), {"name": f"payments/{person.user_id}"}))
    return {
        "CreatePayment": who.payments.CreatePayment(a_payment(vendor)),
        "BatchCreatePayments": who.payments.BatchCreatePayments(
            pb.BatchCreatePaymentsRequest(requests=[a_payment(vendor)])
        ),
        "ListPayments": who.payments.ListPayments(payment),
        "RefundPayment": who.payments.RefundPayment(refund),
        "GetWallet": who.wallets.GetWallet(wallet_pb.GetWalletRequest(name=person.wallet_name)),
        "TopUp": who.wallets.TopUp(a_top_up(person)),
        "MoveBalance": who.wallets.MoveBalance(to_offline(person)),
        "ListTransfers": who.wallets.ListTransfers(
            wallet_pb.ListTransfersRequest(parent=person.wallet_name)
        ),
        "Payout": who.wallets.Payout(a_payout(person)),
        "WatchPayments": who.payments.WatchPayments(pb.WatchPaymentsRequest()).read(),
    }


async def test_a_service_may_not_call_what_is_for_people(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    for name in ("admin", "fraud"):
        async with bank.nothing_changes():
            for rpc, call in calls_of(bank.first.service(name), payer, vendor).items():
                refusal = await refused(call)
                assert refusal.code is grpc.StatusCode.PERMISSION_DENIED, rpc
                assert refusal.reason == "CALLER_NOT_ALLOWED", rpc
                assert refusal.metadata["method"].endswith(f"/{rpc}")


async def test_nobody_calls_without_a_verified_identity(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    nobody = bank.first.service("gateway")

    async with bank.nothing_changes():
        for rpc, call in calls_of(nobody, payer, vendor).items():
            refusal = await refused(call)
            assert refusal.code is grpc.StatusCode.UNAUTHENTICATED, rpc
            assert (refusal.domain, refusal.reason) == ("access.tallystick", "UNAUTHENTICATED")


@pytest.mark.parametrize("payload", ["", "%%%", "e30", "W10", "bnVsbA"])
async def test_an_identity_that_cannot_be_read_is_none(bank, payload):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    payer.payments._metadata = (("x-jwt-payload", payload),)

    refusal = await refused(payer.pay(vendor))

    assert refusal.reason == "UNAUTHENTICATED"


async def test_a_service_cannot_pass_for_a_person(bank):
    """Only the gateway's word about a person counts."""
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    admin = bank.first.service("admin")

    call = admin.payments._stub.CreatePayment(a_payment(vendor), metadata=payer.metadata)

    assert (await refused(call)).reason == "CALLER_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("role", "denied"),
    [
        ("ADMIN", {"CreatePayment", "BatchCreatePayments", "MoveBalance", "Payout"}),
        ("USER", {"TopUp", "RefundPayment"}),
        ("VENDOR", {"TopUp"}),
        ("TERMINAL", EVERY_RPC),
    ],
)
async def test_a_role_opens_what_the_contract_says(bank, role, denied):
    somebody = Person(bank.first.channels, role)
    vendor = await bank.a_vendor()

    for rpc, call in calls_of(somebody, somebody, vendor).items():
        if rpc in denied:
            assert (await refused(call)).reason == "CALLER_NOT_ALLOWED", rpc
        else:
            (answer,) = await asyncio.gather(call, return_exceptions=True)
            if isinstance(answer, grpc.aio.AioRpcError):
                assert answer.code() is not grpc.StatusCode.PERMISSION_DENIED, rpc


async def test_a_revoked_token_stops_counting_within_a_second_and_a_newer_one_counts(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    await payer.pay(vendor)

    fact = event_pb2.TokensRevoked(token_subject=payer.name)
    fact.revoke_time.FromDatetime(bank.clock())
    await publish(bank.redis, an_event("user", payer.name, tokens_revoked=fact))

    async def is_refused():
        try:
            await payer.wallet()
        except grpc.aio.AioRpcError:
            return True
        return False

    await eventually(is_refused, seconds=1)
    async with bank.nothing_changes():
        refusal = await refused(payer.pay(vendor))
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert (refusal.domain, refusal.reason) == ("access.tallystick", "TOKEN_REVOKED")
    again = Person(bank.first.channels, "USER", payer.user_id)
    assert (await again.wallet()).name == payer.wallet_name


async def test_what_was_revoked_before_the_service_started_counts(bank):
    payer = await bank.a_payer()
    bank.user.revoked[payer.name] = bank.clock() + timedelta(minutes=1)

    async with bank.replica() as other:
        there = payer.at(other)

        async def is_refused():
            try:
                await there.wallet()
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False

        await eventually(is_refused)


async def test_an_open_stream_ends_when_its_token_is_revoked(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    stream = payer.payments.WatchPayments(pb.WatchPaymentsRequest())
    assert (await stream.read()).cursor

    fact = event_pb2.TokensRevoked(token_subject=payer.name)
    fact.revoke_time.FromDatetime(bank.clock())
    await publish(bank.redis, an_event("user", payer.name, tokens_revoked=fact))
    await eventually(lambda: bank.first.server._revocations._revoked)
    buyer = Person(bank.first.channels, "USER", payer.user_id)  # signed in again elsewhere
    await buyer.pay(vendor)

    refusal = await refused(stream.read())
    assert refusal.reason == "TOKEN_REVOKED"


async def test_bytes_that_are_no_message_are_refused_as_fields(bank):
    payer = await bank.a_payer()
    gateway = payer.channels["gateway"]
    raw = gateway.unary_unary("/tallystick.payment.v1.PaymentService/CreatePayment")

    refusal = await refused(raw(b"\xff\xff\xff", metadata=payer.metadata))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "FIELDS_INVALID"


async def test_a_peer_without_a_certificate_of_ours_is_not_heard(bank, tls_for):
    address = f"127.0.0.1:{bank.first.port}"
    ca = tls_for("gateway").ca_file.read_bytes()
    options = [("grpc.ssl_target_name_override", "payment.tallystick.internal")]
    credentials = grpc.ssl_channel_credentials(root_certificates=ca)
    async with grpc.aio.secure_channel(address, credentials, options=options) as stranger:
        stub = payment_service_pb2_grpc.PaymentServiceStub(stranger)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ListPayments(pb.ListPaymentsRequest(), timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    async with channel.connect(address, "payment", tls_for("gateway")) as known:
        echo = known.unary_unary("/tallystick.payment.v1.PaymentService/NoSuchCall")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo(Empty().SerializeToString(), timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert all(found.holds for found in (await check(bank.engine)).values())
