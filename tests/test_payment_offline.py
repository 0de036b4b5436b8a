"""ReserveFunds, SettleOffline, ReleaseReservations: the money behind offline codes."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from uuid_utils import UUID, uuid4

from services import names
from services.payment import store
from services.payment.domain.ledger import BALANCE_MINOR_UNITS_MAX
from tallystick.access.v1 import access_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as fraud_pb
from tallystick.payment.v1 import payment_pb2, wallet_pb2
from tallystick.payment.v1 import settlement_service_pb2 as pb
from tallystick.payment.v1 import wallet_service_pb2 as wallet_pb
from tallystick.type.v1 import money_pb2, position_pb2
from tests.eventually import eventually
from tests.fakes.fraud import ALLOW, DECLINE, REVIEW
from tests.fakes.user import an_account
from tests.offline_items import (
    NOT_FOUND,
    RELEASED,
    SETTLED,
    SPENT_AT,
    Codes,
    a_reservation,
    an_item,
    to_reserve,
)
from tests.payment_stack import (
    FAILED,
    FLAGGED,
    SUCCESS,
    Person,
    a_decision,
    a_payout,
    a_refund,
    inr,
    refused,
    to_offline,
    to_online,
)

RISK = payment_pb2.Risk
PURPOSE = wallet_pb2.Transfer
FLOOR = 500_00


@pytest.fixture
def codes(bank):
    return Codes(bank.first)


async def sides(bank):
    """A payer with 1,000.00 and a vendor."""
    return await bank.a_payer(1_000_00), await bank.a_vendor()


async def moves(person):
    """(purpose, from, to, minor units) of everything that touched a wallet, in order."""
    request = wallet_pb.ListTransfersRequest(parent=person.wallet_name)
    listed = (await person.wallets.ListTransfers(request)).transfers
    return [
        (
            PURPOSE.Purpose.Name(each.purpose).removeprefix("PURPOSE_"),
            each.debit_account.rpartition("/")[2],
            each.credit_account.rpartition("/")[2],
            each.amount.minor_units,
        )
        for each in reversed(listed)
    ]


async def test_money_is_set_aside_spent_and_the_rest_returned(bank, codes):
    payer, vendor = await sides(bank)
    (reservation,) = await codes.reserve(payer, 10_00)
    assert await payer.balances() == (990_00, 0, 10_00, 0)

    item = an_item(payer, reservation, vendor, 7_50, reference="till 4")
    (result,) = await codes.settle(item)

    assert (result.payment.name, result.payment.state) == (item.payment, SUCCESS)
    payment = await payer.get(result.payment)
    assert (payment.state, payment.risk) == (SUCCESS, result.payment.risk)
    assert payment.channel == payment_pb2.Payment.CHANNEL_OFFLINE
    assert (payment.payer, payment.vendor) == (payer.name, vendor.name)
    assert payment.terminal == item.terminal
    assert payment.occur_time == item.occur_time
    assert payment.create_time != item.occur_time
    assert payment.amount == inr(7_50)
    assert result.returned == inr(2_50)
    assert await payer.balances() == (990_00, 2_50, 0, 0)
    assert await vendor.online() == 7_50
    assert (await moves(payer))[2:] == [
        ("RESERVE", "offline", "reserved", 10_00),
        ("PAYMENT", "reserved", "online", 7_50),
        ("RELEASE", "reserved", "offline", 2_50),
    ]
    assert await vendor.get(payment) == payment


async def test_an_offline_payment_tells_of_each_state_and_of_every_move(bank, codes):
    payer, vendor = await sides(bank)
    (reservation,) = await codes.reserve(payer, 10_00)

    payment = await codes.pay(payer, reservation, vendor, 7_50)

    told = [event for event in await bank.events() if event.subject == payment.name]
    facts = [event.WhichOneof("fact") for event in told]
    assert facts == ["payment_created", "payment_processing", "payment_succeeded"]
    assert [event.actor for event in told] == ["services/offline"] + ["services/payment"] * 2
    created = told[0].payment_created.payment
    assert (created.channel, created.terminal) == (payment.channel, payment.terminal)
    moved = [transfer.purpose for transfer in told[2].payment_succeeded.transfers]
    assert moved == [PURPOSE.PURPOSE_PAYMENT, PURPOSE.PURPOSE_RELEASE]


async def test_an_online_payment_occurs_when_it_is_made(bank):
    payer, vendor = await sides(bank)

    payment = await payer.pay(vendor)

    assert payment.channel == payment_pb2.Payment.CHANNEL_ONLINE
    assert (payment.terminal, payment.occur_time) == ("", payment.create_time)


async def test_reservations_are_all_made_or_none(bank, codes):
    payer, _ = await sides(bank)
    await payer.wallets.MoveBalance(to_offline(payer, 10_00))

    async with bank.nothing_changes():
        refusal = await refused(codes.reserve_as(to_reserve(payer, 6_00, 4_01)))
    answer = await codes.reserve_as(to_reserve(payer, 6_00, 4_00))

    assert refusal.reason == "INSUFFICIENT_FUNDS"
    assert refusal.metadata["availableMinorUnits"] == "1000"
    assert answer.wallet.reserved == answer.transfer.amount == inr(10_00)
    assert await payer.balances() == (990_00, 0, 10_00, 0)


async def test_a_repeated_reservation_gets_the_first_answer_also_when_it_is_spent(bank, codes):
    payer, vendor = await sides(bank)
    await payer.wallets.MoveBalance(to_offline(payer, 20_00))
    request = to_reserve(payer, 10_00, 5_00)
    first = await codes.reserve_as(request)
    await codes.pay(payer, request.reservations[0].name, vendor, 1_00)

    async with bank.nothing_changes():
        again = await codes.reserve_as(request)

    assert again == first


async def test_what_is_reserved_counts_towards_the_offline_cap(bank, codes):
    payer = await bank.a_payer(5_000_00)
    await codes.reserve(payer, 1_500_00)

    await payer.wallets.MoveBalance(to_offline(payer, 500_00))
    refusal = await refused(payer.wallets.MoveBalance(to_offline(payer, 1)))

    assert refusal.reason == "OFFLINE_CAP_EXCEEDED"


async def test_a_reservation_is_refused_for_the_first_reason_in_the_contracts_order(bank, codes):
    payer, _ = await sides(bank)
    stranger = await bank.an_account(active=False)
    await payer.wallets.MoveBalance(to_offline(payer, 10_00))
    taken = a_reservation(1_00)
    used = str(uuid4())
    await codes.reserve_as(to_reserve(payer, request_id=used, reservations=[taken]))
    nobody = f"users/{uuid4()}/wallets/INR"

    async def reason(of, *amounts, **changes):
        async with bank.nothing_changes():
            return await refused(codes.reserve_as(to_reserve(of, *amounts, **changes)))

    refusal = await reason(payer, 1, wallet=nobody, request_id=used)
    assert (refusal.reason, refusal.metadata) == ("WALLET_NOT_FOUND", {"wallet": nobody})
    assert refusal.code is grpc.StatusCode.NOT_FOUND

    refusal = await reason(stranger, request_id=used, reservations=[taken])
    assert (refusal.reason, refusal.metadata) == ("REQUEST_ID_REUSED", {"requestId": used})
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS

    refusal = await reason(stranger, reservations=[taken])
    assert refusal.reason == "WALLET_NOT_ACTIVE"
    assert refusal.metadata == {"wallet": stranger.wallet_name}

    taken.minor_units = 11_00
    refusal = await reason(payer, reservations=[taken])
    assert refusal.reason == "RESERVATION_EXISTS"
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert refusal.metadata == {"reservation": taken.name}

    refusal = await reason(payer, 11_00)
    assert refusal.reason == "INSUFFICIENT_FUNDS"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_item_is_refused_in_its_place_for_the_first_reason_in_the_contracts_order(
    bank, codes
):
    payer, vendor = await sides(bank)
    live, released, spent = await codes.reserve(payer, 10_00, 10_00, 10_00)
    await codes.release(released)
    settled = an_item(payer, spent, vendor, 10_00)
    await codes.settle(settled)
    kes = money_pb2.Money(minor_units=11_00, currency_code="KES")
    full = await bank.a_vendor()
    await bank.give(full, BALANCE_MINOR_UNITS_MAX - 8_99)
    nowhere = f"reservations/{uuid4()}"
    nobody = f"users/{uuid4()}"
    myself = payer.name

    def of(who, **changes):
        return changes | {"vendor": who, "terminal": f"{who}/terminals/{uuid4()}"}

    expected = [
        ("RESERVATION_NOT_FOUND", {"reservation": nowhere, "payment": settled.payment}),
        (
            "RESERVATION_NOT_FOUND",
            {"payer": vendor.name, "reservation": spent, "payment": settled.payment, "amount": kes},
        ),
        ("PAYMENT_EXISTS", {"reservation": spent, "payment": settled.payment}),
        ("RESERVATION_SETTLED", {"reservation": spent, "amount": kes}),
        ("RESERVATION_RELEASED", {"reservation": released, "amount": kes}),
        ("CURRENCY_MISMATCH", of(myself, amount=kes)),
        ("AMOUNT_OVER_RESERVATION", of(myself, amount=inr(10_01))),
        ("SELF_PAYMENT", of(myself)),
        ("VENDOR_NOT_FOUND", of(nobody)),
        ("BALANCE_OVER_LIMIT", of(full.name)),
    ]
    items = [an_item(payer, live, vendor, 9_00, **changes) for _, changes in expected]
    items[2].reference = "another body"

    found = []
    for item in items:
        async with bank.nothing_changes():
            found.append(await codes.refusal(item))
    results = await codes.settle(an_item(payer, live, full, 8_99), *items[:4])

    assert [refusal.reason for refusal in found] == [reason for reason, _ in expected]
    at = {refusal.reason: refusal for refusal in found}
    assert dict(found[0].metadata) == {"reservation": nowhere}
    assert dict(found[1].metadata) == {"reservation": spent}
    assert at["RESERVATION_NOT_FOUND"].code == grpc.StatusCode.NOT_FOUND.value[0]
    assert dict(at["PAYMENT_EXISTS"].metadata) == {"payment": settled.payment}
    assert at["PAYMENT_EXISTS"].code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    who = {"reservation": spent, "payment": settled.payment}
    assert dict(at["RESERVATION_SETTLED"].metadata) == who
    assert dict(at["RESERVATION_RELEASED"].metadata) == {"reservation": released}
    asked = {"askedMinorUnits": "1001", "reservedMinorUnits": "1000", "currencyCode": "INR"}
    assert dict(at["AMOUNT_OVER_RESERVATION"].metadata) == asked
    assert dict(at["VENDOR_NOT_FOUND"].metadata) == {"vendor": nobody}
    assert all(len(refusal.message) > 20 for refusal in found)
    # Beside them, what is right goes through.
    assert results[0].payment.state == SUCCESS
    assert [each.refusal.reason for each in results[1:]] == [reason for reason, _ in expected[:4]]


async def test_an_item_that_breaks_the_contract_fails_alone(bank, codes, subtests):
    payer, vendor = await sides(bank)
    good = await codes.reserve(payer, *[1_00] * 16)
    bad = [
        ({"payment": "payments/1"}, "payment"),
        ({"reservation": ""}, "reservation"),
        ({"payer": ""}, "payer"),
        ({"vendor": "users/shop", "terminal": f"users/shop/terminals/{uuid4()}"}, "vendor"),
        ({"terminal": f"users/{uuid4()}/terminals/{uuid4()}"}, "terminal"),
        ({"terminal": ""}, "terminal"),
        ({"site": f"users/{uuid4()}/sites/{uuid4()}"}, "site"),
        ({"site": f"{vendor.name}/sites/1"}, "site"),
        ({"amount": inr(0)}, "amount"),
        ({"occur_time": None}, "occur_time"),
        ({"occur_time": Timestamp(seconds=2**62)}, "occur_time"),
        ({"occur_time": Timestamp(seconds=7, nanos=1_500_000_000)}, "occur_time"),
        ({"code_age": Duration(seconds=7, nanos=-1)}, "code_age"),
        ({"hold_reason": "because"}, "hold_reason"),
        ({"device": "x" * 65}, "device"),
        ({"reference": "x" * 141}, "reference"),
    ]
    items = []
    for reservation, (changes, _) in zip(good, bad, strict=True):
        items += [
            an_item(payer, reservation, vendor, 1_00, **changes),
            an_item(payer, reservation, vendor, 1_00),
        ]

    results = await codes.settle(*items)

    for (changes, field), wrong, right in zip(bad, results[::2], results[1::2], strict=True):
        with subtests.test(f"{changes}"):
            assert wrong.refusal.reason == "FIELDS_INVALID"
            assert field in wrong.refusal.message
            assert right.payment.state == SUCCESS


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_request_that_breaks_the_contract_is_refused_whole(bank, codes, subtests):
    payer, _ = await sides(bank)
    await payer.wallets.MoveBalance(to_offline(payer, 100_00))
    twice = [a_reservation(1_00)] * 2
    bad = [
        ({"request_id": "1"}, "request_id"),
        ({"wallet": payer.name}, "wallet"),
        ({"reservations": []}, "reservations"),
        ({"reservations": [a_reservation(1)] * 51}, "reservations"),
        ({"reservations": twice}, "reservations"),
        ({"reservations": [a_reservation(0)]}, "reservations[0].minor_units"),
    ]

    for changes, field in bad:
        with subtests.test(f"{list(changes)}"):
            async with bank.nothing_changes():
                refusal = await refused(codes.reserve_as(to_reserve(payer, **changes)))
            assert refusal.reason == "FIELDS_INVALID"
            assert field in refusal.fields
    for call in (codes.settle(), codes.release(), codes.release("reservations/1")):
        assert (await refused(call)).reason == "FIELDS_INVALID"


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_only_the_offline_service_decides_on_reservations(bank):
    payer, vendor = await sides(bank)
    others = [payer, vendor, bank.admin, bank.first.service("fraud"), bank.first.service("admin")]

    for who in others:
        calls = who.settlements
        for call in (
            calls.ReserveFunds(pb.ReserveFundsRequest()),
            calls.SettleOffline(pb.SettleOfflineRequest()),
            calls.ReleaseReservations(pb.ReleaseReservationsRequest()),
        ):
            refusal = await refused(call)
            assert (refusal.domain, refusal.reason) == ("access.tallystick", "CALLER_NOT_ALLOWED")


async def test_the_fraud_service_is_asked_in_event_time_of_what_the_terminal_knew(bank, codes):
    payer, vendor = await sides(bank)
    typed, scanned = await codes.reserve(payer, 10_00, 10_00)
    site = f"{vendor.name}/sites/{uuid4()}"
    here = position_pb2.Position(latitude=12.5, longitude=77.5, accuracy_meters=8)
    item = an_item(
        payer,
        scanned,
        vendor,
        2_00,
        site=site,
        position=here,
        code_age=Duration(seconds=3600),
        device="phone 7",
    )

    await codes.settle(item, an_item(payer, typed, vendor, 1_00))

    first, second = bank.fraud.asked[-2:]
    assert first == fraud_pb.PaymentFacts(
        payment=item.payment,
        payer=payer.name,
        vendor=vendor.name,
        site=site,
        amount=inr(2_00),
        position=here,
        occur_time=item.occur_time,
        offline=True,
        code_age=Duration(seconds=3600),
        device="phone 7",
    )
    assert second.offline
    assert not second.HasField("code_age")
    assert not second.HasField("position")
    assert second.device == ""
    assert second.occur_time.ToDatetime(UTC) == SPENT_AT


HELD = {
    "REVIEW": (REVIEW, "", RISK.DECISION_REVIEW, ["POSITION_MISSING"]),
    "DECLINE": (DECLINE, "", RISK.DECISION_DECLINE, ["POSITION_MISSING"]),
    "held": (ALLOW, "LATE_UPLOAD", RISK.DECISION_REVIEW, ["LATE_UPLOAD", "POSITION_MISSING"]),
    "both": (DECLINE, "LATE_UPLOAD", RISK.DECISION_DECLINE, ["LATE_UPLOAD", "POSITION_MISSING"]),
}


@pytest.mark.parametrize("approve", [True, False])
@pytest.mark.parametrize("why", HELD)
async def test_whatever_is_said_the_money_is_held_and_a_person_ends_it(bank, codes, why, approve):
    answer, hold_reason, decision, reasons = HELD[why]
    payer, vendor = await sides(bank)
    (reservation,) = await codes.reserve(payer, 10_00)
    bank.fraud.says(answer, score=60, signals=[fraud_pb.Signal.CODE_POSITION_MISSING])

    payment = await codes.pay(payer, reservation, vendor, 7_50, hold_reason=hold_reason)

    assert payment.state == FLAGGED
    assert payment.risk == RISK(decision=decision, score=60, reasons=reasons)
    assert await payer.balances() == (990_00, 2_50, 0, 7_50)
    assert await vendor.online() == 0

    request = a_decision(payment, approve=approve)
    resolved = (await bank.first.reviews.settlements.ResolveHold(request)).payment

    assert resolved.state == (SUCCESS if approve else FAILED)
    assert await payer.balances() == (990_00, 2_50 if approve else 10_00, 0, 0)
    assert await vendor.online() == (7_50 if approve else 0)
    last = ("HOLD_CAPTURE", "held", "online") if approve else ("HOLD_RELEASE", "held", "offline")
    assert (await moves(payer))[-1][:3] == last
    if not approve:
        assert resolved.failure_reason == payment_pb2.Payment.FAILURE_REASON_REVIEW_REJECTED


async def test_a_vendor_who_was_suspended_since_is_paid_by_a_person(bank, codes):
    payer, vendor = await sides(bank)
    (reservation,) = await codes.reserve(payer, 10_00)
    await bank.knows(vendor, active=False, version=2)

    payment = await codes.pay(payer, reservation, vendor, hold_reason="TERMINAL_REVOKED")

    assert payment.state == FLAGGED
    reasons = ["TERMINAL_REVOKED", "VENDOR_NOT_ACTIVE"]
    assert payment.risk == RISK(decision=RISK.DECISION_REVIEW, reasons=reasons)


async def test_codes_of_a_payer_who_was_suspended_since_still_pay(bank, codes):
    payer, vendor = await sides(bank)
    spent, unspent = await codes.reserve(payer, 10_00, 10_00)
    await bank.knows(payer, active=False, version=2)

    payment = await codes.pay(payer, spent, vendor, 9_00)

    assert payment.state == SUCCESS
    assert await codes.release(unspent) == [RELEASED]
    assert (await refused(codes.reserve_as(to_reserve(payer, 1)))).reason == "WALLET_NOT_ACTIVE"
    assert await payer.balances() == (980_00, 11_00, 0, 0)


async def test_it_never_lacks_funds_whatever_the_payer_did_since(bank, codes):
    payer, vendor = await sides(bank)
    reservations = await codes.reserve(payer, *[100_00] * 5)
    await payer.wallets.Payout(a_payout(payer, 500_00))
    assert await payer.balances() == (0, 0, 500_00, 0)
    for request in (to_online(payer), to_offline(payer)):
        assert (await refused(payer.wallets.MoveBalance(request))).reason == "INSUFFICIENT_FUNDS"

    results = await codes.settle(*(an_item(payer, each, vendor, 100_00) for each in reservations))

    assert {result.payment.state for result in results} == {SUCCESS}
    assert await vendor.online() == 500_00


async def test_a_refund_of_an_offline_payment_goes_to_the_online_balance(bank, codes):
    payer, vendor = await sides(bank)
    (reservation,) = await codes.reserve(payer, 10_00)
    item = an_item(payer, reservation, vendor, 10_00)
    (first,) = await codes.settle(item)

    await vendor.payments.RefundPayment(a_refund(first.payment, 4_00))
    (again,) = await codes.settle(item)

    assert await payer.balances() == (994_00, 0, 0, 0)
    assert again == first
    assert (await payer.get(again.payment)).refunded == inr(4_00)


async def test_an_item_again_answers_its_payment_as_it_stands(bank, codes):
    payer, vendor = await sides(bank)
    one, two, three = await codes.reserve(payer, 10_00, 10_00, 10_00)
    bank.fraud.says(REVIEW)
    item = an_item(payer, one, vendor, 6_00)
    (flagged,) = await codes.settle(item)
    await bank.first.reviews.settlements.ResolveHold(a_decision(flagged.payment))
    bank.fraud.says(ALLOW)

    results = await codes.settle(
        an_item(payer, two, vendor), item, an_item(payer, three, vendor), item
    )

    assert flagged.payment.state == FLAGGED
    assert [each.payment.state for each in results] == [SUCCESS] * 4
    assert results[1] == results[3]
    assert results[1].payment.name == item.payment
    assert results[1].returned == flagged.returned == inr(4_00)
    assert await vendor.online() == 26_00
    async with bank.nothing_changes():
        assert (await codes.settle(item))[0] == results[1]
        assert await codes.release(one) == [SETTLED]


async def test_an_item_again_is_known_by_what_its_payment_keeps_to_the_last_digit(bank, codes):
    payer, vendor = await sides(bank)
    item = an_item(
        payer,
        (await codes.reserve(payer, 10_00))[0],
        vendor,
        6_00,
        site=f"{vendor.name}/sites/{uuid4()}",
        occur_time=Timestamp(seconds=1_772_357_400, nanos=123_456_789),
        position=position_pb2.Position(
            latitude=-89.12345678901234, longitude=-1.2345678901234567e-15, accuracy_meters=1 / 3
        ),
        reference="  till 4, “Ā”\0\\' ",
        code_age=Duration(seconds=60),
    )
    (first,) = await codes.settle(item)
    judged = {"hold_reason": "LATE_UPLOAD", "device": "phone 7"}
    also = pb.OfflinePayment(**judged)
    also.MergeFrom(item)
    also.code_age.seconds += 1
    others = [pb.OfflinePayment.FromString(item.SerializeToString()) for _ in range(3)]
    others[0].occur_time.nanos += 1_000
    others[1].position.mocked = True
    others[2].reference += " "

    async with bank.nothing_changes():
        assert list(await codes.settle(item, also)) == [first, first]
        for other in others:
            assert (await codes.refusal(other)).reason == "PAYMENT_EXISTS"


async def test_an_offline_payment_leaves_no_request_and_needs_none(bank, codes):
    payer, vendor = await sides(bank)
    one, two = await codes.reserve(payer, 10_00, 10_00)
    requests = len(await bank.rows(store.requests))
    item = an_item(payer, one, vendor)
    (first,) = await codes.settle(item)
    assert len(await bank.rows(store.requests)) == requests

    # As earlier versions left one: it is neither asked nor in the way.
    scope = hashlib.sha256(b"services/offline").digest()[:16]
    made = names.last_id(item.payment)
    row = {"request_key": scope + made.bytes, "body_hash": bytes(32), "payment_id": made}
    async with bank.engine.begin() as connection:
        await connection.execute(sa.insert(store.requests), row)
    await bank.laws_hold()

    assert (await codes.settle(item))[0] == first
    assert await codes.refusal(an_item(payer, two, vendor, payment=item.payment))


async def test_a_name_that_an_online_payment_has_is_refused(bank, codes):
    payer, vendor = await sides(bank)
    (reservation,) = await codes.reserve(payer, 1_00)
    online = await payer.pay(vendor, 1_00)

    async with bank.nothing_changes():
        refusal = await codes.refusal(
            an_item(payer, reservation, vendor, 1_00, payment=online.name)
        )

    assert refusal.reason == "PAYMENT_EXISTS"


async def test_one_name_for_items_of_two_payers_is_taken_once(bank, codes):
    vendor = await bank.a_vendor()
    payers = [await bank.a_payer() for _ in range(2)]
    held = [(await codes.reserve(payer, 10_00))[0] for payer in payers]
    name = f"payments/{uuid4()}"

    async with bank.replica() as second:
        answers = await asyncio.gather(
            *(
                Codes(replica).settle(an_item(payer, reservation, vendor, payment=name))
                for payer, reservation, replica in zip(
                    payers, held, (bank.first, second), strict=True
                )
            )
        )

    ends = sorted(answer[0].refusal.reason for answer in answers)
    assert ends == ["", "PAYMENT_EXISTS"]
    assert await vendor.online() == 10_00


async def test_released_money_is_back_once_and_a_settled_reservation_stays_settled(bank, codes):
    payer, vendor = await sides(bank)
    unspent, spent = await codes.reserve(payer, 10_00, 5_00)
    payment = await codes.pay(payer, spent, vendor, 5_00)
    nowhere = f"reservations/{uuid4()}"

    first = await codes.release(spent, unspent, nowhere)
    async with bank.nothing_changes():
        again = await codes.release(spent, unspent, nowhere)

    assert first == again == [SETTLED, RELEASED, NOT_FOUND]
    answer = await bank.first.codes.settlements.ReleaseReservations(
        pb.ReleaseReservationsRequest(names=[spent])
    )
    assert answer.results[0].payment == payment.name
    assert await payer.balances() == (985_00, 10_00, 0, 0)
    assert (await moves(payer))[-1] == ("RELEASE", "reserved", "offline", 10_00)


async def test_without_the_fraud_service_items_up_to_the_floor_pass_and_larger_ones_are_held(
    bank, codes
):
    payer, vendor = await bank.a_payer(2_000_00), await bank.a_vendor()
    small, large, held = await codes.reserve(payer, FLOOR, FLOOR + 1, 1_00)
    bank.fraud.failure = ZeroDivisionError()

    results = await codes.settle(
        an_item(
            payer,
            small,
            vendor,
            FLOOR,
            code_age=Duration(seconds=3600, nanos=5_000),
            device="phone 7",
        ),
        an_item(payer, large, vendor, FLOOR + 1),
        an_item(payer, held, vendor, 1_00, hold_reason="SEQUENCE_GAP"),
    )

    degraded = RISK(decision=RISK.DECISION_DEGRADED, reasons=["FRAUD_UNAVAILABLE"])
    assert [each.payment.state for each in results] == [SUCCESS, FLAGGED, FLAGGED]
    assert [each.payment.risk for each in results[:2]] == [degraded] * 2
    reasons = ["SEQUENCE_GAP", "FRAUD_UNAVAILABLE"]
    assert results[2].payment.risk == RISK(decision=RISK.DECISION_REVIEW, reasons=reasons)

    bank.fraud.failure = None
    asked = len(bank.fraud.asked)
    await eventually(lambda: assessed(bank))
    told = [event for event in await bank.events() if event.HasField("payment_assessed")]
    assert [event.subject for event in told] == [results[0].payment.name]
    (late,) = bank.fraud.asked[asked:]
    asked_for = await payer.get(results[0].payment)
    assert (late.offline, late.occur_time) == (True, asked_for.occur_time)
    assert (late.code_age, late.device) == (Duration(seconds=3600, nanos=5_000), "phone 7")


async def assessed(bank):
    return any(event.HasField("payment_assessed") for event in await bank.events())


async def test_five_hundred_items_of_many_payers_settle_in_a_few_groups(bank, codes):
    payers = [await bank.a_payer() for _ in range(5)]
    vendors = [await bank.a_vendor() for _ in range(2)]
    reserved = [(payer, await codes.reserve(payer, *[1_00] * 100)) for payer in payers]
    items = [
        an_item(payer, each, vendors[number % 2], 60)
        for payer, reservations in reserved
        for number, each in enumerate(reservations)
    ]
    groups = len(bank.fraud.calls)

    results = await codes.settle(*items)
    again = await codes.settle(*items)

    assert [each.payment.name for each in results] == [item.payment for item in items]
    assert {each.payment.state for each in results} == {SUCCESS}
    assert list(again) == list(results)
    assert len(bank.fraud.calls[groups:]) == 4
    assert [await payer.balances() for payer in payers] == [(900_00, 40_00, 0, 0)] * 5
    assert [await vendor.online() for vendor in vendors] == [150_00] * 2
    assert await codes.release(*(item.reservation for item in items)) == [SETTLED] * 500


async def test_an_item_the_ledger_stumbles_over_takes_no_other_with_it(bank, codes):
    payer, vendor = await sides(bank)
    reservations = await codes.reserve(payer, *[1_00] * 5)
    items = [an_item(payer, each, vendor, 1_00) for each in reservations]
    items[2].reference = "poison"
    await bank.stumbles_over("poison")

    first = await codes.settle(*items)

    assert [each.payment.state for each in first] == [SUCCESS, SUCCESS, 0, SUCCESS, SUCCESS]
    assert (first[2].refusal.reason, first[2].refusal.code) == ("INTERNAL", 13)
    assert await vendor.online() == 4_00
    await bank.stumbles_no_more()
    results = await codes.settle(*items)
    assert {each.payment.state for each in results} == {SUCCESS}
    assert await vendor.online() == 5_00


async def test_items_beyond_what_the_queue_holds_are_refused_in_their_place(bank, codes):
    payer, vendor = await sides(bank)
    reservations = await codes.reserve(payer, *[1_00] * 8)
    items = [an_item(payer, each, vendor, 1_00) for each in reservations]

    async with bank.replica(queue_size_max=5, group_size_max=2) as small:
        results = await Codes(small).settle(*items)

    assert [each.payment.state for each in results[:5]] == [SUCCESS] * 5
    assert [each.refusal.reason for each in results[5:]] == ["OVERLOADED"] * 3
    assert results[5].refusal.retry_delay == Duration(seconds=1)
    assert await vendor.online() == 5_00


async def test_items_whose_caller_goes_away_are_settled_all_the_same(bank, codes):
    payer, vendor = await sides(bank)
    reservations = await codes.reserve(payer, *[1_00] * 3)
    bank.fraud.answers.clear()
    asking = asyncio.ensure_future(
        codes.settle(*(an_item(payer, each, vendor, 1_00) for each in reservations))
    )
    await eventually(lambda: len(bank.fraud.asked) == 3)

    asking.cancel()
    await asyncio.wait([asking])
    bank.fraud.answers.set()

    async def paid():
        return await vendor.online() == 3_00

    await eventually(paid)


async def test_vendors_the_ledger_does_not_know_yet_are_asked_about_once_a_call(bank, codes):
    payer, vendor = await sides(bank)
    new = [Person(bank.first.channels, "VENDOR") for _ in range(2)]
    nobody = Person(bank.first.channels, "VENDOR")
    for each in new:
        bank.user.knows(an_account(each.name, role=access_pb2.ROLE_VENDOR))
    reservations = await codes.reserve(payer, *[1_00] * 7)
    paid = [new[0], vendor, nobody, new[1], new[0], new[1], nobody]

    results = await codes.settle(
        *(an_item(payer, each, to, 1_00) for each, to in zip(reservations, paid, strict=True))
    )

    states = [each.payment.state for each in results]
    assert states == [0 if each is nobody else SUCCESS for each in paid]
    reasons = {each.refusal.reason for each in results if each.HasField("refusal")}
    assert reasons == {"VENDOR_NOT_FOUND"}
    assert [sorted(asked) for asked in bank.user.asked] == [
        sorted(each.name for each in (*new, nobody))
    ]
    assert [await each.online() for each in new] == [2_00] * 2


async def test_money_of_the_system_is_not_reserved(bank, codes):
    await bank.a_payer()
    wallet = f"users/{UUID(int=1)}/wallets/INR"

    refusal = await refused(codes.reserve_as(to_reserve(bank.admin, 1_00, wallet=wallet)))

    assert refusal.reason == "WALLET_NOT_FOUND"
