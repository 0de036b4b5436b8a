"""What becomes of uploaded sales: every reason, over a real payment service."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import uuid4

from protocol import code as protocol
from protocol import signed, voucher
from services import names
from services.offline import results
from services.offline.store import tables
from services.payment import store as ledger
from tallystick.offline.v1 import code_service_pb2, journal_pb2, offline_pb2
from tallystick.payment.v1 import payment_service_pb2
from tests.eventually import eventually
from tests.fakes.fraud import DECLINE, REVIEW
from tests.offline_stack import (
    HELD,
    NORMAL,
    RECEIVED,
    REFUSED,
    SETTLED,
    SUSPENDED,
    Code,
    Reason,
)
from tests.payment_stack import FLAGGED, SUCCESS, a_decision, inr

DOUBLES = code_service_pb2.ListDoubleSpendsRequest()


async def paid(market, item):
    """The payment behind an item, as the ledger has it."""
    request = payment_service_pb2.GetPaymentRequest(name=item.payment)
    return (await market.bank.admin.payments.GetPayment(request)).payment


async def test_settled(market):
    payer, terminal = await market.a_payer(100_00), await market.a_terminal()
    (issued,) = await payer.issue(100_00)

    item = await terminal.sell(issued)

    assert (item.state, item.reason) == (SETTLED, Reason.REASON_SETTLED)
    assert (item.liability, item.returned) == (offline_pb2.LIABILITY_NONE, inr(0))
    assert await payer.balances() == (0, 0, 0, 0)
    assert await terminal.vendor.online() == 100_00
    code = await payer.state_of(issued)
    assert (code.state, code.payment, code.spent) == (
        Code.STATE_SPENT,
        item.payment,
        inr(100_00),
    )
    payment = await paid(market, item)
    assert payment.state == SUCCESS
    assert (payment.terminal, payment.site) == (terminal.name, terminal.site)
    assert payment.reference == "table 4"
    assert payment.occur_time == item.spend_time
    (event,) = await market.events("item_decided")
    assert event.item_decided.item == item
    assert event.audience == [terminal.vendor.name]


async def test_partially_settled_the_rest_goes_back(market):
    payer, terminal = await market.a_payer(100_00), await market.a_terminal()
    (issued,) = await payer.issue(100_00)

    item = await terminal.sell(issued, 30_00)

    assert (item.state, item.reason) == (SETTLED, Reason.REASON_PARTIALLY_SETTLED)
    assert item.returned == inr(70_00)
    assert await payer.balances() == (0, 70_00, 0, 0)
    assert await terminal.vendor.online() == 30_00


async def test_a_voucher_is_settled_and_fraud_is_told_of_the_device(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    first, second = await payer.vouchers(100_00, 50_00)

    items = await terminal.settle(
        terminal.voucher_sale(first, payer.device, 60_00), terminal.sale(second)
    )

    assert [item.reason for item in items] == [
        Reason.REASON_PARTIALLY_SETTLED,
        Reason.REASON_SETTLED,
    ]
    by_voucher, typed = sorted(market.fraud.asked, key=lambda facts: not facts.device)
    assert len(by_voucher.device) == 16
    assert typed.device == ""
    assert by_voucher.offline
    assert by_voucher.code_age.ToTimedelta() < timedelta(minutes=1)


async def refusal(market, terminal, entry, *, liability=offline_pb2.LIABILITY_VENDOR):
    """The result of an entry that moves no money."""
    before = await market.bank.rows(ledger.transfers)
    (item,) = await terminal.settle(entry)
    assert (item.state, item.liability) == (REFUSED, liability)
    assert item.detail
    assert not item.payment
    assert await market.bank.rows(ledger.transfers) == before
    return item.reason


async def test_terminal_revoked_before_the_sale(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(100_00, 50_00)
    honest = terminal.sale(codes[0])
    market.clock.advance(timedelta(minutes=1))
    await market.revoke_terminal(terminal, at=market.clock())
    market.clock.advance(timedelta(minutes=1))
    late = terminal.sale(codes[1])
    vendor = market.caller(terminal.vendor.name, "VENDOR").sync

    answer = await terminal.submit(honest, late, sync=vendor, terminal=terminal.name)

    items = await terminal.results(answer.batch)
    assert [item.reason for item in items] == [
        Reason.REASON_SETTLED,
        Reason.REASON_TERMINAL_REVOKED,
    ]
    assert items[1].liability == offline_pb2.LIABILITY_VENDOR
    assert (await payer.state_of(codes[1])).state == Code.STATE_ISSUED


async def test_unknown_code(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    invented = protocol.make(
        5, 0, 3, 3, key=bytes(32), issuer="Tallystick", currency="INR"
    ).symbols()
    in_another_currency = inr(10_00)
    in_another_currency.currency_code = "KES"
    island = await market.a_terminal(scope="island")

    for where, entry in (
        (terminal, terminal.sale(invented, 10_00)),
        (terminal, terminal.sale(issued, money=in_another_currency)),
        (island, island.sale(issued)),
    ):
        assert await refusal(market, where, entry) == Reason.REASON_UNKNOWN_CODE
    assert (await terminal.sell(issued)).state == SETTLED


async def test_voucher_invalid(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    other = await market.a_terminal()
    first, _ = await payer.vouchers(100_00, 50_00)
    spend = signed.verify_entry(
        terminal.voucher_sale(first, payer.device, sequence=99), keys(terminal)
    ).sale
    raised = journal_pb2.Sale()
    raised.CopyFrom(spend)
    raised.amount.minor_units = 99_00
    forged = journal_pb2.Sale()
    forged.CopyFrom(spend)
    shown = voucher.decode(first.voucher)
    forged.item_id = str(uuid4())
    forged.spend.voucher = voucher.issue(shown, Ed25519PrivateKey.generate())

    for entry in (
        # The payer's device signed for another terminal, another amount; somebody else's device; no issuer.
        terminal.voucher_sale(first, payer.device, shown_at=other),
        terminal.entry({"sale": raised}),
        terminal.voucher_sale(first, Ed25519PrivateKey.generate()),
        terminal.entry({"sale": forged}),
    ):
        assert await refusal(market, terminal, entry) == Reason.REASON_VOUCHER_INVALID
    spend.item_id = str(uuid4())
    spend.spend.voucher = b"TSV1 or something like it"
    reason = await refusal(market, terminal, terminal.entry({"sale": spend}))
    assert reason == Reason.REASON_UNKNOWN_CODE
    assert (await payer.state_of(first)).state == Code.STATE_ISSUED


def keys(terminal):
    return terminal.key.public_key().public_bytes_raw()


async def test_amount_over_value(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)

    reason = await refusal(market, terminal, terminal.sale(issued, 100_01))

    assert reason == Reason.REASON_AMOUNT_OVER_VALUE
    assert (await terminal.sell(issued)).state == SETTLED


async def test_expired_at_spend_and_uploaded_later_than_it_expired(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    on_time, late = await payer.issue(100_00, 50_00)
    expire_time = late.code.expire_time.ToDatetime(market.clock().tzinfo)
    good = terminal.sale(on_time, at=expire_time - timedelta(microseconds=1))
    bad = terminal.sale(late, at=expire_time)
    market.clock.advance(timedelta(days=5))

    items = await terminal.settle(good, bad)

    assert [item.reason for item in items] == [
        Reason.REASON_SETTLED,
        Reason.REASON_EXPIRED_AT_SPEND,
    ]


async def test_revoked_before_spend_and_spent_before_it_was_revoked(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    before, after = await payer.issue(100_00, 50_00)
    honest = terminal.sale(before)
    market.clock.advance(timedelta(minutes=1))
    await payer.revoke(before, after)
    market.clock.advance(timedelta(minutes=1))

    items = await terminal.settle(honest, terminal.sale(after))

    assert [item.reason for item in items] == [
        Reason.REASON_SETTLED,
        Reason.REASON_REVOKED_BEFORE_SPEND,
    ]
    assert (await payer.state_of(before)).state == Code.STATE_SPENT
    assert (await payer.state_of(after)).state == Code.STATE_REVOKED


async def test_duplicate_code_at_two_vendors_suspends_the_payer_at_once(market):
    payer, first, second = (
        await market.a_payer(),
        await market.a_terminal(),
        await market.a_terminal(),
    )
    spent, other = await payer.issue(100_00, 50_00)
    await first.sell(spent)

    (item,) = await second.settle(second.sale(spent))

    assert (item.state, item.reason) == (REFUSED, Reason.REASON_DUPLICATE_CODE)
    assert item.liability == offline_pb2.LIABILITY_PAYER
    right = await payer.right()
    assert right.level == SUSPENDED
    assert (await payer.state_of(other)).state == Code.STATE_REVOKED
    (found,) = (await market.admin.codes.ListDoubleSpends(DOUBLES)).double_spends
    assert (found.code, found.owner, found.proven) == (spent.code.name, payer.name, False)
    assert (found.first.state, found.second) == (SETTLED, item)
    (event,) = await market.events("double_spend_found")
    assert not event.double_spend_found.double_spend.entries
    (changed,) = await market.events("offline_right_changed")
    assert changed.offline_right_changed.right == right
    # An operator forgives.
    request = code_service_pb2.SetOfflineRightRequest(
        owner=payer.name, level=NORMAL, reason="a stolen paper"
    )
    await market.admin.codes.SetOfflineRight(request)
    assert (await payer.right()).level == NORMAL


async def test_duplicate_code_at_one_vendor_counts_against_that_vendor(market):
    payer, first = await market.a_payer(), await market.a_terminal()
    second = await market.a_terminal(first.vendor)
    spent, other = await payer.issue(100_00, 50_00)
    await first.sell(spent)

    (item,) = await second.settle(second.sale(spent))

    assert (item.reason, item.liability) == (
        Reason.REASON_DUPLICATE_CODE,
        offline_pb2.LIABILITY_VENDOR,
    )
    assert (await payer.right()).level == NORMAL
    assert (await payer.state_of(other)).state == Code.STATE_ISSUED
    (vendor,) = await market.rows(tables.vendors)
    assert vendor.strikes == 1
    assert len(await market.events("double_spend_found")) == 1


async def test_a_code_twice_in_one_batch_is_paid_once(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.vouchers(100_00)

    items = await terminal.settle(
        terminal.sale(issued, 60_00), terminal.voucher_sale(issued, payer.device, 30_00)
    )

    assert [item.reason for item in items] == [
        Reason.REASON_PARTIALLY_SETTLED,
        Reason.REASON_DUPLICATE_CODE,
    ]


async def test_two_signatures_of_the_payer_are_proof(market):
    payer, first, second = (
        await market.a_payer(),
        await market.a_terminal(),
        await market.a_terminal(),
    )
    (issued,) = await payer.vouchers(100_00)
    sales = [
        first.voucher_sale(issued, payer.device),
        second.voucher_sale(issued, payer.device, 40_00),
    ]
    await first.settle(sales[0])
    await second.settle(sales[1])

    (found,) = (await market.admin.codes.ListDoubleSpends(DOUBLES)).double_spends

    assert found.proven
    assert [journal_pb2.SignedEntry.FromString(raw) for raw in found.entries] == sales
    # Anybody with the public keys can check it.
    for raw, terminal in zip(found.entries, (first, second), strict=True):
        sale = signed.verify_entry(journal_pb2.SignedEntry.FromString(raw), keys(terminal)).sale
        shown = voucher.verify(sale.spend.voucher, issuer_keys(terminal))
        spend = voucher.Spend(
            terminal.vendor.user_id,
            terminal.terminal_id,
            sale.amount.minor_units,
            "INR",
            sale.spend.sign_seconds,
        )
        voucher.verify_spend(sale.spend.voucher, spend, sale.spend.signature)
        assert shown.device_key == payer.device.public_key().public_bytes_raw()


def issuer_keys(terminal):
    return {key.key_id: key.public_key for key in terminal.bundle.issuer_keys}


async def test_one_signature_uploaded_twice_by_its_vendor_is_no_proof(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.vouchers(100_00)
    first = terminal.voucher_sale(issued, payer.device)
    copy = signed.verify_entry(first, keys(terminal)).sale
    copy.item_id = str(uuid4())
    await terminal.settle(first)
    (item,) = await terminal.settle(terminal.entry({"sale": copy}))

    (found,) = (await market.admin.codes.ListDoubleSpends(DOUBLES)).double_spends

    assert item.reason == Reason.REASON_DUPLICATE_CODE
    assert not found.proven


async def test_double_spends_come_in_pages(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(10_00, 10_00, 10_00)
    await terminal.settle(*(terminal.sale(each) for each in codes * 2))

    request = code_service_pb2.ListDoubleSpendsRequest(page_size=2)
    first = await market.admin.codes.ListDoubleSpends(request)
    request.page_token = first.next_page_token
    second = await market.admin.codes.ListDoubleSpends(request)

    seen = [found.code for found in (*first.double_spends, *second.double_spends)]
    assert sorted(seen) == sorted(each.code.name for each in codes)
    assert (len(first.double_spends), second.next_page_token) == (2, "")


async def test_late_upload(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    sale = terminal.sale(issued)
    market.clock.advance(timedelta(days=9))
    await market.release()

    reason = await refusal(market, terminal, sale)

    assert reason == Reason.REASON_LATE_UPLOAD
    assert (await payer.state_of(issued)).state == Code.STATE_EXPIRED


async def test_at_the_release_time_it_is_late_even_if_nobody_has_swept_yet(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    sale = terminal.sale(issued)
    release_time = issued.code.release_time.ToDatetime(market.clock().tzinfo)
    market.clock.advance(release_time - market.clock())

    assert await refusal(market, terminal, sale) == Reason.REASON_LATE_UPLOAD


async def resolve(market, item, *, approve=True):
    decision = a_decision(await paid(market, item), approve=approve)
    await market.bank.first.reviews.settlements.ResolveHold(decision)


async def until_state(terminal, item, state):
    async def found():
        now = await item_of(terminal, item)
        return now if now.state == state else None

    return await eventually(found)


async def item_of(terminal, item):
    row = (await terminal.stack.until(which(item)))[0]
    batch = offline_pb2.Batch(name=names.batch_name(row.batch_id))
    (found,) = [each for each in (await terminal.get(batch)).items if each.name == item.name]
    return found


def which(item):
    return sa.select(tables.entries).where(tables.entries.c.item_id == names.last_id(item.name))


async def test_a_vendor_that_is_not_active_waits_for_a_person(market):
    payer, terminal = await market.a_payer(100_00), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    await market.set_active(terminal.vendor, active=False)

    item = await terminal.sell(issued)

    assert (item.state, item.reason) == (HELD, Reason.REASON_VENDOR_NOT_APPROVED)
    assert item.liability == offline_pb2.LIABILITY_UNDER_REVIEW
    assert await payer.balances() == (0, 0, 0, 100_00)
    payment = await paid(market, item)
    assert payment.state == FLAGGED
    assert payment.risk.reasons[0] == "VENDOR_NOT_APPROVED"


async def test_payment_may_know_first_that_a_vendor_is_not_active(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    await market.bank.knows(terminal.vendor, active=False, version=9)

    item = await terminal.sell(issued)

    assert (item.state, item.reason) == (HELD, Reason.REASON_VENDOR_NOT_APPROVED)


@pytest.mark.parametrize("years", [1, -1])
async def test_a_clock_a_year_off_is_held(market, years):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    first, second = await payer.issue(100_00, 50_00)
    at = market.clock() + timedelta(days=365 * years)

    (item,) = await terminal.settle(terminal.sale(first, at=at))

    # A year ahead the code has expired; a year behind it holds, and a person decides.
    if years > 0:
        assert item.reason == Reason.REASON_EXPIRED_AT_SPEND
        soon = market.clock() + timedelta(hours=1)
        (item,) = await terminal.settle(terminal.sale(second, at=soon))
    assert (item.state, item.reason) == (HELD, Reason.REASON_CLOCK_IMPLAUSIBLE)
    assert (await paid(market, item)).risk.reasons[0] == "CLOCK_IMPLAUSIBLE"


async def test_a_sale_after_a_sync_that_set_the_clock_right_is_settled(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    first, second, third = await payer.issue(100_00, 50_00, 20_00)
    ahead = terminal.sale(first, at=market.clock() + timedelta(hours=1))
    (item,) = await terminal.settle(ahead)
    assert (item.state, item.reason) == (HELD, Reason.REASON_CLOCK_IMPLAUSIBLE)

    market.clock.advance(timedelta(minutes=1))
    await terminal.fetch()
    market.clock.advance(timedelta(minutes=1))
    (item,) = await terminal.settle(terminal.sale(second))

    assert (item.state, item.reason) == (SETTLED, Reason.REASON_SETTLED)
    # Nobody has told the time since: before the entry before it is still before it.
    backwards = terminal.sale(third, at=market.clock() - timedelta(seconds=30))
    (item,) = await terminal.settle(backwards)
    assert item.reason == Reason.REASON_CLOCK_IMPLAUSIBLE


async def test_a_bundle_nobody_gave_is_implausible(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    made_up = terminal.sale(issued, bundle_version=terminal.bundle.version + 1)

    (item,) = await terminal.settle(made_up)

    assert item.reason == Reason.REASON_CLOCK_IMPLAUSIBLE


async def test_a_missing_entry_holds_the_one_behind_it_and_no_other(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 4)
    entries = [terminal.sale(each) for each in codes]

    items = await terminal.settle(entries[0], entries[2], entries[3])
    (missing,) = await terminal.settle(entries[1])

    assert [item.reason for item in items] == [
        Reason.REASON_SETTLED,
        Reason.REASON_SEQUENCE_GAP,
        Reason.REASON_SETTLED,
    ]
    # Uploaded later it counts for itself, and changes nothing there.
    assert missing.reason == Reason.REASON_SETTLED
    assert (await item_of(terminal, items[1])).state == HELD


async def test_a_copied_journal_is_held_from_where_it_forks(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 4)
    first, second = terminal.sale(codes[0]), terminal.sale(codes[1])
    terminal.sequence, terminal.previous = 1, signed.entry_hash(first.content)
    fork = [terminal.sale(codes[2]), terminal.sale(codes[3])]
    await terminal.settle(first, second)

    items = await terminal.settle(*fork)

    assert [item.reason for item in items] == [
        Reason.REASON_SEQUENCE_REUSED,
        Reason.REASON_SETTLED,
    ]
    assert items[0].state == HELD


@pytest.mark.parametrize("decision", [REVIEW, DECLINE])
async def test_what_fraud_does_not_like_is_held_and_a_person_decides(market, decision):
    payer, terminal = await market.a_payer(150_00), await market.a_terminal()
    approved, rejected = await payer.issue(100_00, 50_00)
    market.fraud.says(decision, score=80, signals=["CODE_DISTANCE_OVER_LIMIT"])
    items = await terminal.settle(terminal.sale(approved, 60_00), terminal.sale(rejected, 20_00))
    assert {(item.state, item.reason) for item in items} == {(HELD, Reason.REASON_HELD_FOR_REVIEW)}
    assert "DISTANCE_OVER_LIMIT" in items[0].detail
    assert await payer.balances() == (0, 70_00, 0, 80_00)

    await resolve(market, items[0], approve=True)
    await resolve(market, items[1], approve=False)

    settled = await until_state(terminal, items[0], SETTLED)
    refused = await until_state(terminal, items[1], REFUSED)
    assert settled.reason == Reason.REASON_PARTIALLY_SETTLED
    assert (refused.reason, refused.returned) == (Reason.REASON_REVIEW_REJECTED, inr(50_00))
    assert await payer.balances() == (0, 90_00, 0, 0)
    assert await terminal.vendor.online() == 60_00
    decided = await market.events("item_decided")
    assert [event.item_decided.item.state for event in decided][:2] == [HELD, HELD]
    assert {event.item_decided.item.state for event in decided[2:]} == {SETTLED, REFUSED}


async def test_a_review_whose_news_is_lost_is_found_by_asking(market, monkeypatch):
    monkeypatch.setattr(results, "_WATCH_EVERY", timedelta(minutes=1))
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    market.fraud.says(REVIEW)
    item = await terminal.sell(issued)
    # As if Redis had lost it: nobody hears of the review.
    monkeypatch.setattr("services.offline.events.review", lambda event: None)
    await resolve(market, item)
    assert (await item_of(terminal, item)).state == HELD

    market.clock.advance(timedelta(minutes=1))

    await until_state(terminal, item, SETTLED)


@pytest.mark.parametrize(("approve", "state"), [(True, SETTLED), (False, REFUSED)])
async def test_a_review_that_is_faster_than_the_record_of_the_hold_decides(
    market, monkeypatch, approve, state
):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    market.fraud.says(REVIEW)
    conclude = market.first.server.settling._results.conclude

    async def conclude_late(told):
        ((entry, answer),) = told
        await market.bank.first.reviews.settlements.ResolveHold(
            a_decision(answer.payment, approve=approve)
        )
        reviewed = sa.select(tables.entries).where(tables.entries.c.entry_id == entry.entry_id)
        await market.until(reviewed.where(tables.entries.c.review.is_not(None)))
        await conclude(told)

    monkeypatch.setattr(market.first.server.settling._results, "conclude", conclude_late)
    item = await terminal.sell(issued)

    assert item.state == state
    (event,) = await market.events("item_decided")
    assert event.item_decided.item == item


async def test_what_is_still_held_stays_as_it_is_when_asked_again(market, monkeypatch):
    monkeypatch.setattr(results, "_WATCH_EVERY", timedelta(minutes=1))
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    market.fraud.says(REVIEW)
    item = await terminal.sell(issued)
    asked = len(market.line.asked["SettleOffline"])

    market.clock.advance(timedelta(minutes=1))
    await eventually(lambda: len(market.line.asked["SettleOffline"]) > asked)
    await eventually(lambda: put_off(market, item))

    assert await item_of(terminal, item) == item
    assert len(await market.events("item_decided")) == 1


async def put_off(market, item):
    (row,) = await market.until(which(item))
    return row.due_time > market.clock()


async def test_ones_own_code_is_refused_by_the_ledger_and_stays_good(market):
    vendor = await market.a_payer(role="VENDOR")
    market.describe(vendor.ledger)
    own, other = await market.a_terminal(vendor.ledger), await market.a_terminal()
    (issued,) = await vendor.issue(100_00)

    (item,) = await own.settle(own.sale(issued))

    assert (item.state, item.reason) == (REFUSED, Reason.REASON_PAYMENT_REFUSED)
    assert item.detail.startswith("SELF_PAYMENT: ")
    assert item.liability == offline_pb2.LIABILITY_UNDER_REVIEW
    assert not item.payment
    assert (await vendor.state_of(issued)).state == Code.STATE_ISSUED
    assert (await other.sell(issued)).state == SETTLED


async def test_a_refused_code_that_was_revoked_stays_revoked(market):
    vendor = await market.a_payer(role="VENDOR")
    market.describe(vendor.ledger)
    terminal = await market.a_terminal(vendor.ledger)
    (issued,) = await vendor.issue(100_00)
    sale = terminal.sale(issued)
    market.clock.advance(timedelta(seconds=1))
    await vendor.revoke(issued)

    await terminal.settle(sale)

    assert (await vendor.state_of(issued)).state == Code.STATE_REVOKED


async def test_an_item_that_is_too_much_for_payment_holds_up_only_itself(market):
    payer = await market.a_payer()
    bad, good = await market.a_terminal(), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 4)
    market.line.too_much.add(bad.vendor.name)
    market.line.open.clear()

    stuck = (await bad.submit(bad.sale(codes[0]))).batch
    fine = (await good.submit(*(good.sale(each) for each in codes[1:]))).batch
    market.line.open.set()

    assert {item.state for item in await good.results(fine)} == {SETTLED}
    (item,) = (await bad.get(stuck)).items
    assert item.state == RECEIVED
    # Once the defect is mended it is settled like any other.
    market.line.too_much.clear()
    market.clock.advance(timedelta(minutes=10))
    (item,) = await bad.results(stuck)
    assert item.state == SETTLED


async def test_a_full_wallet_refuses_nothing_for_good(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    market.line.refusals[terminal.vendor.name] = ("BALANCE_OVER_LIMIT", "The wallet is full.")
    batch = (await terminal.submit(terminal.sale(issued))).batch
    await market.until(sa.select(tables.entries).where(tables.entries.c.attempts > 0))
    assert (await terminal.get(batch)).items[0].state == RECEIVED

    market.line.refusals.clear()
    market.clock.advance(timedelta(minutes=1))

    (item,) = await terminal.results(batch)
    assert item.state == SETTLED


async def test_books_that_differ_are_a_persons_work(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    market.line.refusals[terminal.vendor.name] = ("RESERVATION_RELEASED", "It went back.")

    (item,) = await terminal.settle(terminal.sale(issued))

    assert item.reason == Reason.REASON_PAYMENT_REFUSED
    assert (await payer.state_of(issued)).state == Code.STATE_SPENT
    market.books_agree = False
    (broken,) = await market.audited()
    assert broken.startswith(f"{issued.code.name}: spent by payments/")


async def test_a_suspended_payers_earlier_sale_still_counts(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    sale = terminal.sale(issued)
    market.clock.advance(timedelta(seconds=1))
    request = code_service_pb2.SetOfflineRightRequest(
        owner=payer.name, level=SUSPENDED, reason="asked"
    )
    await market.admin.codes.SetOfflineRight(request)
    await market.bank.knows(payer.ledger, active=False, version=9)

    (item,) = await terminal.settle(sale)

    assert item.state == SETTLED


async def test_fraud_is_told_of_event_time(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(100_00)
    market.clock.advance(timedelta(hours=2))
    sold_at = market.clock()
    sale = terminal.sale(issued, at=sold_at)
    market.clock.advance(timedelta(days=3))

    await terminal.settle(sale)

    (facts,) = market.fraud.asked
    assert facts.occur_time.ToDatetime(sold_at.tzinfo) == sold_at
    age = facts.code_age.ToTimedelta()
    assert timedelta(hours=2) <= age < timedelta(hours=2, minutes=1)


async def test_what_was_taken_while_fraud_was_away_is_told_with_age_and_device(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.vouchers(100_00)
    market.clock.advance(timedelta(hours=2))
    market.fraud.failure = ZeroDivisionError()
    (item,) = await terminal.settle(terminal.voucher_sale(issued, payer.device))
    assert (await paid(market, item)).risk.reasons == ["FRAUD_UNAVAILABLE"]
    (unanswered,) = market.fraud.asked[-1:]

    market.fraud.failure = None
    await eventually(lambda: len(market.fraud.asked) > 1 and assessed(market))

    late = market.fraud.asked[-1]
    assert late.payment == unanswered.payment == item.payment
    assert (late.device, late.code_age) == (unanswered.device, unanswered.code_age)
    assert len(late.device) == 16
    assert late.code_age.ToTimedelta() >= timedelta(hours=2)


async def assessed(market):
    return any(event.HasField("payment_assessed") for event in await market.bank.events())
