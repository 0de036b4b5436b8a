"""What a person finds again: payments and transfers, their own and no one else's, page by page."""

from __future__ import annotations

import asyncio
import base64

import grpc
import pytest
from uuid_utils import uuid4

from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.payment.v1 import wallet_service_pb2 as wallet_pb
from tests.payment_stack import a_payment, a_top_up, refused

ANY, AS_PAYER, AS_VENDOR = range(3)


async def payments(person, of=None, **changes):
    fields = {"parent": (of or person).name, "currency_code": "INR"}
    return await person.payments.ListPayments(pb.ListPaymentsRequest(**fields | changes))


async def transfers(person, of=None, **changes):
    fields = {"parent": (of or person).wallet_name}
    return await person.wallets.ListTransfers(wallet_pb.ListTransfersRequest(**fields | changes))


def names_of(answer):
    found = answer.payments if isinstance(answer, pb.ListPaymentsResponse) else answer.transfers
    return [each.name for each in found]


async def every_page(list_, person, size, *, between=None, **changes):
    """The names on all pages; `between` happens after each."""
    found, token = [], ""
    while True:
        answer = await list_(person, page_size=size, page_token=token, **changes)
        found += names_of(answer)
        token = answer.next_page_token
        if not token:
            return found
        assert len(names_of(answer)) == size
        if between:
            await between()


async def test_a_payment_is_found_by_its_name_by_both_sides_and_admins_only(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    payment = await payer.pay(vendor, 4_00)

    for who in (payer, vendor, bank.admin, bank.first.reviews):
        request = pb.GetPaymentRequest(name=payment.name)
        assert (await who.payments.GetPayment(request)).payment == payment
    for stranger in (await bank.a_payer(), await bank.a_vendor()):
        refusal = await refused(stranger.get(payment))
        assert refusal.code is grpc.StatusCode.NOT_FOUND
        assert (refusal.domain, refusal.reason) == ("payment.tallystick", "PAYMENT_NOT_FOUND")
        assert refusal.metadata == {"payment": payment.name}


async def test_a_payment_is_found_by_the_request_that_made_it_by_its_maker_only(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    payment = await payer.pay(vendor, 4_00)

    for spelled in (payment.request_id, payment.request_id.upper()):
        request = pb.GetPaymentRequest(request_id=spelled)
        assert (await payer.payments.GetPayment(request)).payment == payment
    for stranger in (vendor, await bank.a_payer(), bank.admin, bank.first.reviews):
        refusal = await refused(stranger.payments.GetPayment(request))
        assert refusal.reason == "PAYMENT_NOT_FOUND"


async def test_a_request_that_made_no_payment_finds_none(bank):
    payer = await bank.a_payer()
    request = a_top_up(payer, 4_00)
    await bank.admin.wallets.TopUp(request)

    for request_id in (request.request_id, str(uuid4())):
        call = bank.admin.payments.GetPayment(pb.GetPaymentRequest(request_id=request_id))
        assert (await refused(call)).reason == "PAYMENT_NOT_FOUND"


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_asking_for_a_payment_takes_a_name_or_a_request_id(bank, subtests):
    payer = await bank.a_payer()

    for changes, field in [
        ({}, "key"),
        ({"name": ""}, "name"),
        ({"name": "payments/17"}, "name"),
        ({"request_id": "17"}, "request_id"),
    ]:
        with subtests.test(f"{changes}"):
            call = payer.payments.GetPayment(pb.GetPaymentRequest(**changes))
            refusal = await refused(call)
            assert (refusal.reason, refusal.fields) == ("FIELDS_INVALID", (field,))


async def test_payments_are_listed_newest_first_by_side(bank):
    shop, stall = await bank.a_vendor(100_00), await bank.a_vendor(100_00)
    made = [await shop.pay(stall, 1_00), await stall.pay(shop, 1_00), await shop.pay(stall, 1_00)]
    by_shop, to_shop = [made[2].name, made[0].name], [made[1].name]

    assert names_of(await payments(shop)) == [payment.name for payment in reversed(made)]
    assert names_of(await payments(shop, side=AS_PAYER)) == by_shop
    assert names_of(await payments(shop, side=AS_VENDOR)) == to_shop
    assert names_of(await payments(bank.admin, of=shop, side=AS_VENDOR)) == to_shop
    assert (await payments(shop)).payments[0] == made[2]
    assert names_of(await payments(shop, currency_code="KES")) == []


async def test_failed_and_pending_payments_are_listed_too(bank):
    payer, vendor = await bank.a_payer(1_00), await bank.a_vendor()
    failed = await payer.pay(vendor, 5_00)
    waiting = await payer.pay(vendor, 1_00, wait=False)

    assert names_of(await payments(vendor)) == [waiting.name, failed.name]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_pages_hold_everything_once_and_are_not_moved_by_what_comes_in(bank, size):
    payer, vendor = await bank.a_payer(), await bank.a_vendor(10_00)
    made = [await payer.pay(vendor, 1_00) for _ in range(4)]
    made += [await vendor.pay(await bank.a_vendor(), 1_00) for _ in range(3)]
    expected = [payment.name for payment in reversed(made)]

    async def one_more():
        await payer.pay(vendor, 1_00)

    assert await every_page(payments, vendor, size, between=one_more) == expected


@pytest.mark.parametrize("size", [1, 3, 8])
async def test_transfers_are_listed_newest_first_whole_and_once(bank, size):
    payer, vendor = await bank.a_payer(100_00), await bank.a_vendor()
    for _ in range(7):
        await payer.pay(vendor, 1_00)

    async def one_more():
        await payer.pay(vendor, 1_00)

    expected = names_of(await transfers(payer))
    assert len(expected) == 8
    assert expected == sorted(expected, reverse=True)
    assert await every_page(transfers, payer, size, between=one_more) == expected
    assert names_of(await transfers(bank.admin, of=vendor))[-7:] == expected[:-1]


async def test_a_transfer_within_one_wallet_is_listed_once(bank):
    payer = await bank.a_payer(10_00)
    request = wallet_pb.MoveBalanceRequest(
        request_id=str(uuid4()), wallet=payer.wallet_name, direction=1
    )
    request.amount.minor_units, request.amount.currency_code = 1_00, "INR"
    moved = await payer.wallets.MoveBalance(request)

    assert names_of(await transfers(payer)).count(moved.transfer.name) == 1


async def test_a_page_token_is_good_for_the_same_request_only(bank, subtests):
    shop, other = await bank.a_vendor(10_00), await bank.a_vendor(10_00)
    for _ in range(3):
        await shop.pay(other, 1_00)
    token = (await payments(shop, page_size=1)).next_page_token
    transfer_token = (await transfers(shop, page_size=1)).next_page_token
    cut = base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)[:-1]).decode()
    forged = base64.urlsafe_b64encode(bytes(24)).decode()

    calls = {
        "another side": payments(shop, side=AS_PAYER, page_token=token),
        "another currency": payments(shop, currency_code="KES", page_token=token),
        "another person": payments(other, page_token=token),
        "another list": transfers(shop, page_token=token),
        "a list of transfers": payments(shop, page_token=transfer_token),
        "cut short": payments(shop, page_token=cut),
        "forged": payments(shop, page_token=forged),
        "no base64": payments(shop, page_token="नहीं"),
        "odd": payments(shop, page_token="abc"),
    }
    for kind, call in calls.items():
        with subtests.test(kind):
            refusal = await refused(call)
            assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
            assert refusal.domain == "access.tallystick"
            assert refusal.reason == "PAGE_TOKEN_INVALID"


async def test_a_page_holds_fifty_unless_asked_and_never_over_two_hundred(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    await asyncio.gather(*(payer.pay(vendor, 1) for _ in range(60)))

    assert len(names_of(await payments(payer))) == 50
    assert len(names_of(await payments(payer, page_size=200))) == 60
    for wrong in (-1, 201):
        for list_ in (payments, transfers):
            refusal = await refused(list_(payer, page_size=wrong))
            assert (refusal.reason, refusal.fields) == ("FIELDS_INVALID", ("page_size",))


async def test_what_belongs_to_others_is_not_found(bank):
    payer, other = await bank.a_payer(), await bank.a_payer()
    wallet = wallet_pb.GetWalletRequest(name=other.wallet_name)
    missing = f"users/{uuid4()}/wallets/INR"

    calls = [
        (payer.wallets.GetWallet(wallet), other.wallet_name),
        (transfers(payer, of=other), other.wallet_name),
        (payments(payer, of=other), other.wallet_name),
        (bank.admin.wallets.GetWallet(wallet_pb.GetWalletRequest(name=missing)), missing),
        (transfers(bank.admin, parent=missing), missing),
    ]
    for call, name in calls:
        refusal = await refused(call)
        assert refusal.code is grpc.StatusCode.NOT_FOUND
        assert (refusal.domain, refusal.reason) == ("payment.tallystick", "WALLET_NOT_FOUND")
        assert refusal.metadata == {"wallet": name}
    assert (await bank.admin.wallets.GetWallet(wallet)).wallet == await other.wallet()


async def test_a_wallet_says_whether_its_owner_may_move_money(bank):
    payer = await bank.an_account(active=False)
    assert not (await payer.wallet()).active

    await bank.knows(payer, version=2)

    wallet = await payer.wallet()
    assert wallet.active
    assert wallet.name == payer.wallet_name


@pytest.mark.parametrize("dialect", ["sqlite"])
async def test_a_currency_must_be_named_when_listing(bank):
    payer = await bank.a_payer()

    for wrong in ("", "inr", "RUPEES"):
        refusal = await refused(payments(payer, currency_code=wrong))
        assert (refusal.reason, refusal.fields) == ("FIELDS_INVALID", ("currency_code",))


async def test_a_payment_on_record_keeps_what_was_sent_to_the_last_bit(bank):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    request = a_payment(vendor, 1_00, reference="päy 🙏 \\ ' \" %s")
    request.position.latitude, request.position.longitude = 12.971598765432101, -0.1 - 0.2
    request.position.accuracy_meters = 100_000

    payment = (await payer.payments.CreatePayment(request)).payment

    assert (await payer.get(payment)).position == request.position
    assert (await payer.get(payment)).reference == request.reference
