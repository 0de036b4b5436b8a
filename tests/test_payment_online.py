"""CreatePayment: what becomes of a payment, what is refused, in which order, and what a repetition is answered."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from uuid_utils import UUID, uuid4

from services.payment.domain.ledger import BALANCE_MINOR_UNITS_MAX, TRANSFER_MINOR_UNITS_MAX
from tallystick.fraud.v1 import fraud_service_pb2 as fraud_pb
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.type.v1 import money_pb2, position_pb2
from tests.eventually import eventually
from tests.fakes.fraud import ALLOW, DECLINE, REVIEW
from tests.payment_stack import FAILED, FLAGGED, SUCCESS, a_payment, inr, refused

DOMAIN = "payment.tallystick"
RISK = payment_pb2.Risk
INT64_MAX = 2**63 - 1
NOWHERE = f"users/{uuid4()}"


async def test_a_payment_reaches_the_vendor_and_is_answered_as_it_stands(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.says(ALLOW, score=3, signals=[fraud_pb.Signal.CODE_POSITION_MISSING])
    site = f"{vendor.name}/sites/{uuid4()}"
    position = position_pb2.Position(
        latitude=12.97, longitude=77.59, accuracy_meters=12, mocked=True
    )
    request = a_payment(vendor, 4_00, site=site, reference="order 7", position=position)

    payment = (await payer.payments.CreatePayment(request)).payment

    assert payment.state == SUCCESS
    assert payment.failure_reason == 0
    assert (payment.payer, payment.vendor, payment.site) == (payer.name, vendor.name, site)
    assert (payment.amount, payment.refunded) == (inr(4_00), inr(0))
    assert (payment.reference, payment.position) == ("order 7", position)
    assert payment.request_id == request.request_id
    assert payment.risk == RISK(decision=RISK.DECISION_ALLOW, score=3, reasons=["POSITION_MISSING"])
    assert UUID(payment.name.removeprefix("payments/")).version == 7
    assert await payer.get(payment) == payment
    assert (await payer.online(), await vendor.online()) == (6_00, 4_00)


async def test_the_fraud_service_is_told_what_is_known_of_a_payment(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    site = f"{vendor.name}/sites/{uuid4()}"
    position = position_pb2.Position(latitude=-12.5, longitude=77.25, accuracy_meters=12)

    waited = await payer.pay(vendor, 4_00, site=site, position=position)
    later = await payer.pay(vendor, 4_00, site=site, position=position, wait=False)
    await eventually(lambda: len(bank.fraud.asked) == 2)

    for payment, facts in zip((waited, later), bank.fraud.asked, strict=True):
        assert facts.payment == payment.name
        assert (facts.payer, facts.vendor, facts.site) == (payer.name, vendor.name, site)
        assert (facts.amount, facts.position) == (inr(4_00), position)
        assert facts.HasField("occur_time")
    await payer.pay(vendor)
    assert not bank.fraud.asked[-1].HasField("position")


RISK_DECLINED = payment_pb2.Payment.FAILURE_REASON_RISK_DECLINED
INSUFFICIENT_FUNDS = payment_pb2.Payment.FAILURE_REASON_INSUFFICIENT_FUNDS


@pytest.mark.parametrize(
    ("decision", "amount", "outcome", "leaves"),
    [
        (REVIEW, 4_00, (FLAGGED, 0), (6_00, 4_00, 0)),
        (DECLINE, 4_00, (FAILED, RISK_DECLINED), (10_00, 0, 0)),
        (ALLOW, 10_01, (FAILED, INSUFFICIENT_FUNDS), (10_00, 0, 0)),
        (ALLOW, 10_00, (SUCCESS, 0), (0, 0, 10_00)),
        (ALLOW, 1, (SUCCESS, 0), (9_99, 0, 1)),
        # A decision this version does not know, or none at all, is a person's to make.
        (0, 4_00, (FLAGGED, 0), (6_00, 4_00, 0)),
        (9, 4_00, (FLAGGED, 0), (6_00, 4_00, 0)),
    ],
)
async def test_what_the_fraud_check_and_the_balance_say_decides(
    bank, decision, amount, outcome, leaves
):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.says(decision, score=60, signals=[fraud_pb.Signal.CODE_DISTANCE_OVER_LIMIT])

    payment = await payer.pay(vendor, amount)

    assert (payment.state, payment.failure_reason) == outcome
    assert (payment.risk.score, list(payment.risk.reasons)) == (60, ["DISTANCE_OVER_LIMIT"])
    online, _, _, held = await payer.balances()
    assert (online, held, await vendor.online()) == leaves
    assert await payer.get(payment) == payment


async def test_whatever_the_fraud_service_answers_a_payment_can_be_recorded(bank):
    """Scores and signals of a version to come, or of a broken one, are no reason to lose a payment."""
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    codes = [fraud_pb.Signal.CODE_AMOUNT_OVER_REVIEW_LIMIT, *range(100, 200)] * 5
    bank.fraud.says(REVIEW, score=2**31 - 1, signals=codes)

    payment = await payer.pay(vendor)

    assert payment.state == FLAGGED
    assert payment.risk.score == 100
    assert payment.risk.reasons[0] == "AMOUNT_OVER_REVIEW_LIMIT"
    assert await payer.get(payment) == payment
    bank.fraud.says(ALLOW, score=-5)
    assert (await payer.pay(vendor)).risk.score == 0


async def test_an_answer_about_other_payments_is_no_answer(bank):
    payer, vendor = await bank.a_payer(1_000_00), await bank.a_vendor()
    other = f"payments/{uuid4()}"
    bank.fraud.judge = lambda _: fraud_pb.Assessment(payment=other, decision=ALLOW)

    payment = await payer.pay(vendor, 500_01)

    assert payment.state == FLAGGED
    assert payment.risk.decision == RISK.DECISION_DEGRADED


async def test_a_repeated_request_is_answered_with_the_payment_brought_up_to_date(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request = a_payment(vendor, 4_00)
    first = (await payer.payments.CreatePayment(request)).payment
    refund = pb.RefundPaymentRequest(
        name=first.name, request_id=str(uuid4()), amount=inr(1_00), reason="returned"
    )
    refunded = (await vendor.payments.RefundPayment(refund)).payment
    await bank.knows(payer, active=False, version=2)
    await bank.knows(vendor, active=False, version=2)
    bank.fraud.says(DECLINE)

    async with bank.nothing_changes():
        again = (await payer.payments.CreatePayment(request)).payment

    assert again == refunded
    assert again.name == first.name


async def test_a_failed_payment_stays_failed_when_its_request_is_repeated(bank):
    payer, vendor = await bank.a_payer(1_00), await bank.a_vendor()
    request = a_payment(vendor, 4_00)
    first = (await payer.payments.CreatePayment(request)).payment
    await bank.give(payer, 100_00)

    again = (await payer.payments.CreatePayment(request)).payment

    assert first.state == FAILED
    assert again == first


async def test_one_request_sent_twenty_times_at_once_pays_once(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request = a_payment(vendor, 4_00)

    answers = await asyncio.gather(*(payer.payments.CreatePayment(request) for _ in range(20)))

    assert all(answer == answers[0] for answer in answers)
    assert (await payer.online(), await vendor.online()) == (6_00, 4_00)


async def test_one_request_in_twenty_bodies_at_once_is_carried_out_for_one_of_them(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request_id = str(uuid4())

    answers = await asyncio.gather(
        *(payer.pay(vendor, 1 + number, request_id=request_id) for number in range(20)),
        return_exceptions=True,
    )

    paid = [answer for answer in answers if isinstance(answer, payment_pb2.Payment)]
    assert len(paid) == 1
    codes = {each.code() for each in answers if isinstance(each, grpc.aio.AioRpcError)}
    assert codes == {grpc.StatusCode.ALREADY_EXISTS}
    assert await vendor.online() == paid[0].amount.minor_units


async def test_a_caller_who_goes_away_does_not_stop_the_payment(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    bank.fraud.answers.clear()
    request = a_payment(vendor, 4_00)
    call = payer.payments.CreatePayment(request)
    await eventually(lambda: bank.fraud.asked)

    call.cancel()
    bank.fraud.answers.set()
    again = (await payer.payments.CreatePayment(request)).payment

    assert again.state == SUCCESS
    assert await vendor.online() == 4_00


ANOTHER_BODY = [
    {"amount": inr(4_01)},
    {"reference": "x"},
    {"vendor": NOWHERE},
    {"position": position_pb2.Position()},
]


@pytest.mark.parametrize("changes", ANOTHER_BODY, ids=lambda changes: next(iter(changes)))
async def test_a_request_id_with_another_body_is_refused(bank, changes):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request_id = str(uuid4())
    await payer.pay(vendor, 4_00, request_id=request_id)

    async with bank.nothing_changes():
        refusal = await refused(payer.pay(vendor, 4_00, **{"request_id": request_id} | changes))

    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert (refusal.domain, refusal.reason) == (DOMAIN, "REQUEST_ID_REUSED")
    assert refusal.metadata == {"requestId": request_id}


async def test_the_id_of_a_refused_request_may_be_used_again(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    request_id = str(uuid4())
    await refused(payer.pay(vendor, TRANSFER_MINOR_UNITS_MAX + 1, request_id=request_id))

    payment = await payer.pay(vendor, 4_00, request_id=request_id)

    assert payment.state == SUCCESS


A_SITE = f"users/{uuid4()}/sites/{uuid4()}"
BAD_FIELDS = [
    ({"request_id": "17"}, "request_id"),
    ({"request_id": ""}, "request_id"),
    ({"vendor": ""}, "vendor"),
    ({"vendor": "users/17"}, "vendor"),
    ({"vendor": f"users/{uuid4()}".upper()}, "vendor"),
    ({"amount": None}, "amount"),
    ({"amount": inr(0)}, "amount"),
    ({"amount": inr(-1)}, "amount"),
    ({"amount": inr(-(2**63))}, "amount"),
    ({"amount": money_pb2.Money(minor_units=1, currency_code="")}, "amount.currency_code"),
    ({"amount": money_pb2.Money(minor_units=1, currency_code="inr")}, "amount.currency_code"),
    ({"position": position_pb2.Position(latitude=float("nan"))}, "position.latitude"),
    ({"position": position_pb2.Position(latitude=90.01)}, "position.latitude"),
    ({"position": position_pb2.Position(longitude=float("inf"))}, "position.longitude"),
    ({"position": position_pb2.Position(longitude=-180.01)}, "position.longitude"),
    ({"position": position_pb2.Position(accuracy_meters=float("nan"))}, "position.accuracy_meters"),
    ({"position": position_pb2.Position(accuracy_meters=-1)}, "position.accuracy_meters"),
    ({"site": "here"}, "site"),
    ({"reference": "x" * 141}, "reference"),
]


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_field_that_breaks_the_contract_is_named_and_nothing_is_recorded(bank, subtests):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    for changes, field in BAD_FIELDS:
        with subtests.test(f"{changes}"):
            async with bank.nothing_changes():
                refusal = await refused(payer.pay(vendor, **changes))

            assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
            assert (refusal.domain, refusal.reason) == ("access.tallystick", "FIELDS_INVALID")
            assert field in refusal.fields
            assert all(each.partition(".")[0] == field.partition(".")[0] for each in refusal.fields)
            assert refusal.metadata == {"field": refusal.fields[0]}
            assert refusal.retry_after is None


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_site_of_somebody_else_is_refused(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    async with bank.nothing_changes():
        refusal = await refused(payer.pay(vendor, site=A_SITE))

    assert (refusal.reason, refusal.fields) == ("FIELDS_INVALID", ("site",))
    assert refusal.message == "site: must be one of the vendor's"


async def test_a_payment_is_refused_for_the_first_reason_in_the_contracts_order(bank):
    """All reasons are in the way at once; each time the first one is removed."""
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()
    over = TRANSFER_MINOR_UNITS_MAX + 1
    request_id = str(uuid4())
    await payer.pay(vendor, request_id=request_id)
    await bank.knows(payer, active=False, version=2)

    async def reason(**changes):
        async with bank.nothing_changes():
            return await refused(payer.pay(vendor, **changes))

    used = {"request_id": request_id}
    dollars = money_pb2.Money(minor_units=over, currency_code="USD")
    refusal = await reason(**used, vendor=payer.name, amount=dollars)
    assert refusal.reason == "SELF_PAYMENT"
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.metadata == {}

    refusal = await reason(**used, vendor=NOWHERE, amount=dollars)
    assert refusal.reason == "CURRENCY_UNSUPPORTED"
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.metadata == {"currencyCode": "USD", "supported": "INR, KES"}

    refusal = await reason(**used, vendor=NOWHERE, amount=inr(over))
    assert refusal.reason == "AMOUNT_OVER_LIMIT"
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.metadata == {
        "askedMinorUnits": str(over),
        "limitMinorUnits": str(TRANSFER_MINOR_UNITS_MAX),
        "currencyCode": "INR",
    }

    refusal = await reason(**used, vendor=NOWHERE, amount=inr(TRANSFER_MINOR_UNITS_MAX))
    assert refusal.reason == "REQUEST_ID_REUSED"

    refusal = await reason(vendor=NOWHERE)
    assert refusal.reason == "PAYER_NOT_ACTIVE"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.metadata == {"payer": payer.name}

    await bank.knows(payer, version=3)
    refusal = await reason(vendor=NOWHERE)
    assert refusal.reason == "VENDOR_NOT_FOUND"
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert refusal.metadata == {"vendor": NOWHERE}

    await bank.give(vendor, BALANCE_MINOR_UNITS_MAX - 1_00)
    await bank.knows(vendor, active=False, version=2)
    refusal = await reason(amount=inr(1))
    assert refusal.reason == "VENDOR_NOT_ACTIVE"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.metadata == {"vendor": vendor.name}

    await bank.knows(vendor, version=3)
    refusal = await reason(amount=inr(1))
    assert refusal.reason == "BALANCE_OVER_LIMIT"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    limit = str(BALANCE_MINOR_UNITS_MAX)
    assert refusal.metadata == {"limitMinorUnits": limit, "currencyCode": "INR"}


async def test_somebody_who_sells_nothing_cannot_be_paid(bank):
    payer, friend = await bank.a_payer(), await bank.a_payer()

    refusal = await refused(payer.pay(friend))

    assert refusal.reason == "VENDOR_NOT_FOUND"


async def test_a_vendor_pays_another_vendor(bank):
    buyer, seller = await bank.a_vendor(10_00), await bank.a_vendor()

    payment = await buyer.pay(seller, 4_00)

    assert payment.state == SUCCESS
    assert await seller.online() == 4_00


async def test_the_largest_amounts_are_refused_or_fail_and_never_overflow(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()

    assert (await refused(payer.pay(vendor, INT64_MAX))).reason == "AMOUNT_OVER_LIMIT"
    payment = await payer.pay(vendor, TRANSFER_MINOR_UNITS_MAX)

    assert payment.state == FAILED
    assert payment.failure_reason == payment_pb2.Payment.FAILURE_REASON_INSUFFICIENT_FUNDS


async def test_the_same_payer_paying_at_once_spends_what_is_there_and_no_more(bank):
    payer, vendor = await bank.a_payer(10_00), await bank.a_vendor()

    payments = await asyncio.gather(*(payer.pay(vendor, 1_00) for _ in range(15)))

    states = sorted(payment.state for payment in payments)
    assert states == [SUCCESS] * 10 + [FAILED] * 5
    assert await payer.balances() == (0, 0, 0, 0)
    assert await vendor.online() == 10_00


async def test_two_who_pay_each_other_at_once_do_not_stand_in_each_others_way(bank):
    asha, babu = await bank.a_vendor(100_00), await bank.a_vendor(100_00)

    payments = await asyncio.gather(
        *(asha.pay(babu, 2_00) for _ in range(20)), *(babu.pay(asha, 1_00) for _ in range(20))
    )

    assert {payment.state for payment in payments} == {SUCCESS}
    assert (await asha.online(), await babu.online()) == (80_00, 120_00)
