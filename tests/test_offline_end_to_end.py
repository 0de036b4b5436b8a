"""Offline payments through the whole stack: every reason there is."""

import os
import signal
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import UUID, uuid4

from cli import audit
from cli.demo.client import ApiError
from pos.errors import PosError
from protocol import code as codes
from protocol import voucher
from protocol.voucher import Spend
from services import names, sql
from tallystick.offline.v1 import journal_pb2, offline_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.type.v1 import position_pb2
from tests import offline_world
from tests.eventually import eventually
from tests.offline_world import ago, inr, reason_of

Level = offline_pb2.OfflineRight.Level


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with offline_world.running(tmp_path_factory.mktemp("offline")) as running:
        yield running


@pytest.fixture
async def world(stack):
    async with offline_world.visiting(stack) as visited:
        yield visited
        findings = await audit.audit_stack(stack.endpoints)
        assert [found.first_broken for found in findings.values() if not found.holds] == []


@pytest.fixture
async def shop(world):
    return await world.person(vendor=True)


@pytest.fixture
async def till(world, shop):
    return await world.terminal(shop)


async def test_a_code_is_settled_whole_or_in_part(world, shop, till):
    payer = await world.payer(offline=300_00)
    whole, part = await world.codes(payer, 100_00, 200_00)
    assert await world.balances(payer) == (4_700_00, 0, 300_00, 0)

    reasons = await till.upload(till.sale(whole, 100_00), till.sale(part, 150_00))

    assert reasons == ["SETTLED", "PARTIALLY_SETTLED"]
    assert await world.balances(payer) == (4_700_00, 50_00, 0, 0)
    assert await world.balances(shop) == (250_00, 0, 0, 0)


async def test_what_is_uploaded_again_has_its_first_result(world, shop, till):
    payer = await world.payer()
    (code,) = await world.codes(payer)
    sale = till.sale(code)
    request_id = str(uuid4())
    who = await till.sign_in()
    first = await till.submit(sale, request_id=request_id, who=who)
    items = await till.results(first.batch.name)

    again = await till.submit(sale, request_id=request_id, who=who)
    assert again.batch.name == first.batch.name
    assert again.receipt == first.receipt
    elsewhere = await till.submit(sale, who=who)
    assert elsewhere.batch.name != first.batch.name
    assert await till.results(elsewhere.batch.name) == items
    assert await world.balances(shop) == (100_00, 0, 0, 0)


async def test_a_request_id_with_other_entries_is_refused(world, till):
    payer = await world.payer()
    first, second = await world.codes(payer, 100_00, 100_00)
    request_id = str(uuid4())
    await till.submit(till.sale(first), request_id=request_id)

    with pytest.raises(PosError) as refused:
        await till.submit(till.sale(second), request_id=request_id)
    assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_a_code_spent_at_two_vendors_pays_the_first_and_suspends_its_owner(world, till):
    payer = await world.payer()
    code, other = await world.codes(payer, 100_00, 50_00)
    second = await world.terminal(await world.person(vendor=True))
    assert await till.upload(till.sale(code)) == ["SETTLED"]

    assert await second.upload(second.sale(code)) == ["DUPLICATE_CODE"]

    right = await payer.client.offline_right()
    assert right.level == Level.LEVEL_SUSPENDED
    with pytest.raises(ApiError) as refused:
        await world.codes(payer, 20_00)
    assert refused.value.reason == "OFFLINE_SUSPENDED"
    states = {code.state for code in await payer.client.codes()}
    assert states == {offline_pb2.Code.STATE_SPENT, offline_pb2.Code.STATE_REVOKED}
    # A sale of the other code from before that still counts; one from after it does not.
    third = await world.terminal(await world.person(vendor=True))
    assert await third.upload(third.sale(other, 50_00)) == ["REVOKED_BEFORE_SPEND"]


async def test_a_code_taken_twice_by_one_vendor_is_that_vendors_fault(world, shop, till):
    payer = await world.payer()
    (code,) = await world.codes(payer)
    second = await world.terminal(shop)

    assert await till.upload(till.sale(code)) == ["SETTLED"]
    assert await second.upload(second.sale(code)) == ["DUPLICATE_CODE"]

    assert (await payer.client.offline_right()).level == Level.LEVEL_NORMAL


async def test_the_same_code_twice_in_one_upload_is_paid_once(world, shop, till):
    payer = await world.payer()
    (code,) = await world.codes(payer)

    assert await till.upload(till.sale(code), till.sale(code)) == ["SETTLED", "DUPLICATE_CODE"]
    assert await world.balances(shop) == (100_00, 0, 0, 0)


async def test_a_code_nobody_issued_is_refused(till):
    (key,) = (key for key in till.bundle.code_keys[:1])
    forged = codes.make(
        4711,
        key.keyset,
        till.bundle.tiers[0].number,
        10,
        key=key.key,
        issuer=till.bundle.issuer,
        currency="INR",
    )

    assert await till.upload(till.sale(forged.symbols(), 10_00)) == ["UNKNOWN_CODE"]


async def test_more_than_a_code_is_worth_is_refused_and_the_code_stays_good(world, till):
    payer = await world.payer()
    (code,) = await world.codes(payer)

    reasons = await till.upload(till.sale(code, 100_01), till.sale(code, 100_00))

    assert reasons == ["AMOUNT_OVER_VALUE", "SETTLED"]


async def test_a_code_that_had_expired_is_refused(world, till):
    payer = await world.payer()
    await world.codes(payer)
    issued = await payer.client.issue_codes([100_00], "INR")
    expired = issued[0].code.expire_time.ToDatetime(UTC)

    assert await till.upload(till.sale(issued[0].symbols, at=expired)) == ["EXPIRED_AT_SPEND"]


async def test_a_sale_before_a_revocation_counts_and_one_after_it_does_not(world, till):
    payer = await world.payer()
    first, second = await payer.client.issue_codes([100_00, 100_00], "INR")
    before = datetime.now(UTC)
    await payer.client.revoke_codes([first.code.name, second.code.name], "Lost the paper.")

    assert await till.upload(
        till.sale(first.symbols, at=before), till.sale(second.symbols, at=datetime.now(UTC))
    ) == ["SETTLED", "REVOKED_BEFORE_SPEND"]
    assert len((await till.fetch()).denied) >= 1


async def test_an_upload_after_the_window_is_refused_and_the_money_is_back(world, till):
    payer = await world.payer(offline=100_00)
    (issued,) = await payer.client.issue_codes([100_00], "INR")
    sale = till.sale(issued.symbols)
    code_id = UUID(issued.code.name.split("/")[1])
    world.edit(
        "offline",
        "UPDATE codes SET release_time = ? WHERE code_id = ?",
        sql.micros(ago(minutes=1)),
        code_id.bytes,
    )

    async def is_back():
        return await world.balances(payer) == (4_900_00, 100_00, 0, 0)

    await eventually(is_back, seconds=20)
    assert await till.upload(sale) == ["LATE_UPLOAD"]
    assert await world.balances(payer) == (4_900_00, 100_00, 0, 0)


async def test_missing_entries_hold_the_one_behind_the_gap_and_no_other(world, shop, till):
    payer = await world.payer()
    first, lost, third, fourth = await world.codes(payer, *[100_00] * 4)
    before, gap = till.sale(first), till.sale(lost)
    behind, after = till.sale(third), till.sale(fourth)

    assert await till.upload(before, behind, after) == ["SETTLED", "SEQUENCE_GAP", "SETTLED"]
    assert await world.balances(shop) == (200_00, 0, 0, 0)
    assert (await world.balances(payer))[3] == 100_00
    # What was missing may come later.
    assert await till.upload(gap) == ["SETTLED"]


async def test_a_held_item_is_decided_by_a_person(world, shop, till):
    payer = await world.payer()
    good, bad = await world.codes(payer, 100_00, 100_00)
    till.sale("0" * 16)
    first = till.sale(good)
    till.sale("0" * 16)
    answers = [await till.submit(first), await till.submit(till.sale(bad))]
    who = await till.sign_in()
    outcomes = []
    for answer, approve in zip(answers, (True, False), strict=True):
        (item,) = await till.results(answer.batch.name)
        assert (item.state, reason_of(item)) == (offline_pb2.Item.STATE_HELD, "SEQUENCE_GAP")
        case = await world.operator.open_case(item.payment)
        payment = case.payment
        assert (payment.channel, payment.terminal) == (
            payment_pb2.Payment.CHANNEL_OFFLINE,
            till.name,
        )
        assert payment.occur_time.ToDatetime() < case.create_time.ToDatetime()
        await world.operator.decide(case.name, approve=approve, reason="Called the shop.")

        async def changed(name=answer.batch.name):
            (now,) = (await world.platform.batch(who, name)).items
            return now if now.state != offline_pb2.Item.STATE_HELD else None

        outcomes.append(reason_of(await eventually(changed)))

    assert outcomes == ["SETTLED", "REVIEW_REJECTED"]
    assert await world.balances(shop) == (100_00, 0, 0, 0)
    assert await world.balances(payer) == (3_000_00, 1_900_00, 0, 0)


async def test_two_entries_with_one_number_hold_the_second(world, till):
    payer = await world.payer()
    first, second = await world.codes(payer, 100_00, 100_00)
    copied = till.previous
    assert await till.upload(till.sale(first)) == ["SETTLED"]
    till.previous = copied

    assert await till.upload(till.sale(second, sequence=1)) == ["SEQUENCE_REUSED"]


@pytest.mark.parametrize("off", [timedelta(hours=1), timedelta(days=-365)], ids=["ahead", "behind"])
async def test_a_clock_that_cannot_be_right_holds_the_sale(world, till, off):
    payer = await world.payer()
    (code,) = await world.codes(payer)

    assert await till.upload(till.sale(code, at=datetime.now(UTC) + off)) == ["CLOCK_IMPLAUSIBLE"]


async def test_a_sale_far_from_the_shop_is_held_by_the_fraud_check(world, till):
    payer = await world.payer()
    (code,) = await world.codes(payer)
    chennai = position_pb2.Position(latitude=13.0827, longitude=80.2707, accuracy_meters=20)

    assert await till.upload(till.sale(code, place=chennai)) == ["HELD_FOR_REVIEW"]


async def test_sales_are_held_at_a_shop_where_codes_are_guessed(world, shop, till):
    async def sell(wrong_codes=0):
        # Each by somebody else, or they would be held for being many.
        (code,) = await world.codes(await world.payer(), 10_00)
        return await till.upload(till.sale(code, 10_00, wrong_codes=wrong_codes))

    assert await sell() == ["SETTLED"]
    # Perhaps held itself: what it tells of guesses may be heard before it is judged.
    await sell(wrong_codes=20)

    async def held():
        return await sell() == ["HELD_FOR_REVIEW"]

    await eventually(held)
    item = (await world.operator.offline_items(till.name))[0]
    assert "CODE_GUESSING" in item.detail


async def test_a_broken_entry_stops_none_of_the_others(world, shop, till):
    payer = await world.payer()
    first, second = await world.codes(payer, 100_00, 100_00)
    good = till.sale(first)
    forged = till.sale(second, key=Ed25519PrivateKey.generate(), sequence=99)
    nonsense = journal_pb2.SignedEntry(
        content=b"\xff\xff", signature=till.key.sign(b"TSJ1\xff\xff")
    )
    empty = journal_pb2.SignedEntry()

    answer = await till.submit(good, forged, nonsense, empty)

    refusals = [offline_pb2.Reason.Name(entry.refusal) for entry in answer.entries]
    assert [name.removeprefix("REASON_") for name in refusals] == [
        "UNSPECIFIED",
        "SIGNATURE_INVALID",
        "ENTRY_MALFORMED",
        "ENTRY_MALFORMED",
    ]
    assert [reason_of(item) for item in await till.results(answer.batch.name)] == ["SETTLED"]
    assert await world.balances(shop) == (100_00, 0, 0, 0)


async def test_a_revoked_terminals_earlier_sales_count_when_its_vendor_uploads_them(
    world, shop, till
):
    payer = await world.payer()
    first, second = await world.codes(payer, 100_00, 100_00)
    earlier = till.sale(first)
    token = await till.sign_in()
    await shop.client.revoke_terminal(till.name, "Stolen.")
    later = till.sale(second)

    async def is_refused():
        # Not by the upload: one that arrives within that second is taken, and comes too early in its journal.
        with pytest.raises(PosError) as refused:
            await world.platform.batch(token, names.batch_name(uuid4()))
        return refused.value.reason == "TOKEN_REVOKED"

    await eventually(is_refused, seconds=1)
    with pytest.raises(PosError) as refused:
        await till.sign_in()
    assert refused.value.reason == "TERMINAL_REVOKED"
    vendor = await world.platform.sign_in_vendor(shop.username, shop.password)
    assert await till.upload(earlier, later, who=vendor) == ["SETTLED", "TERMINAL_REVOKED"]


async def test_nobody_uploads_or_reads_anothers_journal(world, till):
    payer = await world.payer()
    (code,) = await world.codes(payer)
    stranger = await world.terminal(await world.person(vendor=True))
    batch = (await till.submit(till.sale(code))).batch.name

    with pytest.raises(PosError) as refused:
        await till.submit(till.sale(code), who=await stranger.sign_in())
    assert refused.value.reason == "TERMINAL_NOT_FOUND"
    with pytest.raises(PosError) as refused:
        await world.platform.batch(await stranger.sign_in(), batch)
    assert refused.value.reason == "BATCH_NOT_FOUND"


async def test_a_vendor_suspended_before_the_settlement_has_its_sales_held(
    world, stack, shop, till
):
    payer = await world.payer()
    (code,) = await world.codes(payer)
    sale = till.sale(code)
    who = await till.sign_in()
    # Payment is away, and nobody starts it again before the news is out: then it has that before anybody asks it.
    os.kill(stack.supervisor.pid, signal.SIGSTOP)
    try:
        os.kill(stack.endpoints.processes["payment"], signal.SIGKILL)
        batch = (await till.submit(sale, who=who)).batch.name
        await world.operator.suspend(shop.name, "Complaints.")
    finally:
        os.kill(stack.supervisor.pid, signal.SIGCONT)

    async def held():
        items = await world.operator.offline_items(till.name)
        return items[0] if items[0].state == offline_pb2.Item.STATE_HELD else None

    item = await eventually(held, seconds=30)
    assert (reason_of(item), bool(batch)) == ("VENDOR_NOT_APPROVED", True)


async def test_a_vendors_own_code_at_its_own_till_is_refused_and_stays_its_own(world, shop, till):
    await world.operator.top_up(shop.wallet_name, inr(100_00), "counter")
    await shop.client.move_offline(inr(100_00))
    (code,) = await world.codes(shop)

    assert await till.upload(till.sale(code)) == ["PAYMENT_REFUSED"]
    (item,) = await world.operator.offline_items(till.name)
    assert "SELF_PAYMENT" in item.detail
    assert await world.balances(shop) == (0, 0, 100_00, 0)


async def test_two_spends_of_one_voucher_are_proof_against_the_payer(world, till):
    device = Ed25519PrivateKey.generate()
    payer = await world.payer()
    (issued,) = await payer.client.issue_codes(
        [100_00], "INR", device=device.public_key().public_bytes_raw()
    )
    second = await world.terminal(await world.person(vendor=True))

    def spend(at):
        seconds = int(datetime.now(UTC).timestamp())
        said = Spend(at.vendor_id, at.terminal_id, 90_00, "INR", seconds)
        signature = voucher.sign_spend(issued.voucher, said, device)
        return journal_pb2.VoucherSpend(
            voucher=issued.voucher, sign_seconds=seconds, signature=signature
        )

    assert await till.upload(till.sale("", 90_00, spend=spend(till))) == ["PARTIALLY_SETTLED"]
    stolen = spend(till)
    assert await second.upload(second.sale("", 90_00, spend=stolen)) == ["VOUCHER_INVALID"]
    assert await second.upload(second.sale("", 90_00, spend=spend(second))) == ["DUPLICATE_CODE"]

    found = (await world.operator.double_spends())[0]
    assert found.code == issued.code.name
    assert found.proven
    assert len(found.entries) == 2
