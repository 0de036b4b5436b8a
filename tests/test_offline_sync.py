"""Terminals fetch bundles, upload journals and watch results, over a real payment service."""

from __future__ import annotations

import asyncio
from datetime import UTC, timedelta

import grpc
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import uuid4, uuid7

from protocol import code as protocol
from protocol import issued_filter, signed
from services import names
from services.offline import trust
from services.offline.store import tables
from tallystick.offline.v1 import journal_pb2, offline_pb2
from tallystick.offline.v1 import terminal_sync_service_pb2 as pb
from tests.offline_stack import DONE, RECEIVED, SETTLED, Reason, Terminal
from tests.payment_stack import inr, refused

BUNDLE = pb.GetTrustBundleRequest()
MALFORMED = Reason.REASON_ENTRY_MALFORMED
FORGED = Reason.REASON_SIGNATURE_INVALID


def keys_of(terminal):
    return {key.key_id: key.public_key for key in terminal.bundle.issuer_keys}


def filter_key(terminal, issued):
    symbols = protocol.normalize(issued.symbols)
    (key,) = [
        each.key
        for each in terminal.bundle.code_keys
        if each.keyset == protocol.parse(symbols).keyset
    ]
    return protocol.filter_key(key, symbols)


async def test_a_bundle_is_signed_for_its_terminal_and_says_what_it_must_know(market):
    terminal = await market.a_terminal(scope="island", fetch=False)

    travelling = await terminal.fetch()

    bundle = signed.verify_bundle(travelling, keys_of(terminal))
    assert bundle.terminal == terminal.name
    assert (bundle.issuer, bundle.scope, bundle.spend_days) == ("Tallystick", "island", 3)
    now = market.clock()
    assert timedelta() <= now - bundle.server_time.ToDatetime(UTC) < timedelta(seconds=10)
    assert [key.keyset for key in bundle.code_keys] == [0]
    assert {limit.minor_units for limit in bundle.limits.payment_max} == {500_00}
    assert 0 < bundle.limits.stored_count_soft < bundle.limits.stored_count_hard
    assert 0 < bundle.limits.minutes_soft < bundle.limits.minutes_hard


async def test_versions_grow_at_every_replica_whatever_its_clock(market):
    terminal = await market.a_terminal()
    async with market.replica() as other:
        versions = []
        for sync in (terminal.sync, terminal.at(other)) * 3:
            answer = await sync.GetTrustBundle(BUNDLE)
            versions.append(pb.TrustBundle.FromString(answer.bundle.content).version)
            market.clock.advance(timedelta(seconds=-1))

    assert versions == sorted(set(versions))


async def test_the_issued_filter_knows_live_codes_and_no_others(market, monkeypatch):
    monkeypatch.setattr(trust, "_LOOK_AGAIN", timedelta())
    payer = await market.a_payer()
    live, revoked, spent = await payer.issue(10_00, 10_00, 10_00)
    terminal = await market.a_terminal()
    await terminal.sell(spent)
    await payer.revoke(revoked)

    await terminal.fetch()

    data = terminal.bundle.issued.data
    assert issued_filter.contains(data, filter_key(terminal, live))
    assert list(terminal.bundle.denied) == [filter_key(terminal, revoked)]
    # Nearly all keys that are not in it are not taken.
    others = sum(issued_filter.contains(data, key) for key in range(10_000))
    assert others < 200
    # It is honest about how fresh it is: codes issued later are not its business.
    age = market.clock() - terminal.bundle.issued.build_time.ToDatetime(UTC)
    assert timedelta(seconds=15) <= age < timedelta(seconds=40)


async def test_an_area_knows_nothing_of_anothers_codes(market):
    payer = await market.a_payer()
    (issued,) = await payer.issue(10_00)
    await payer.revoke(issued)

    island = await market.a_terminal(scope="island")

    assert (island.bundle.issued.data, list(island.bundle.denied)) == (b"", [])


async def test_terminals_that_sync_together_share_a_filter(market, monkeypatch):
    built = []
    monkeypatch.setattr(
        trust.issued_filter, "build", lambda keys: built.append(keys) or bytes([len(built)])
    )
    payer = await market.a_payer()
    await payer.issue(10_00)

    terminals = [await market.a_terminal() for _ in range(3)]

    assert len(built) == 1
    assert {terminal.bundle.issued.data for terminal in terminals} == {b"\x01"}


async def test_unknown_and_revoked_terminals_get_no_bundle(market):
    vendor = await market.a_vendor()
    unknown = Terminal(market, vendor, uuid4(), Ed25519PrivateKey.generate(), "main")
    refusal = await refused(unknown.sync.GetTrustBundle(BUNDLE))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "TERMINAL_NOT_FOUND")
    assert refusal.metadata == {"terminal": unknown.name}

    terminal = await market.a_terminal(vendor)
    await market.revoke_terminal(terminal, at=market.clock())
    refusal = await refused(terminal.sync.GetTrustBundle(BUNDLE))
    assert refusal.reason == "TERMINAL_REVOKED"
    assert refusal.metadata == {"terminal": terminal.name}


async def test_a_terminal_is_known_before_its_event_arrives(market):
    terminal = await market.a_terminal(fetch=False)

    assert (await terminal.sync.GetTrustBundle(BUNDLE)).bundle.content


async def test_the_head_is_the_highest_number_that_arrived(market):
    terminal = await market.a_terminal()
    head = pb.GetJournalHeadRequest()
    assert await terminal.sync.GetJournalHead(head) == pb.GetJournalHeadResponse(hash=bytes(32))
    payer = await market.a_payer()
    codes = await payer.issue(10_00, 10_00, 10_00)
    entries = [terminal.sale(each) for each in codes]

    await terminal.submit(entries[1], entries[0])
    found = await terminal.sync.GetJournalHead(head)
    assert (found.sequence, found.hash) == (2, signed.entry_hash(entries[1].content))
    # What comes late does not move it back.
    terminal.sequence = 0
    await terminal.submit(entries[2])
    await terminal.submit(entries[0])
    found = await terminal.sync.GetJournalHead(head)
    assert (found.sequence, found.hash) == (3, signed.entry_hash(entries[2].content))


async def test_an_upload_is_answered_with_a_receipt_that_proves_it_arrived(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(10_00, 10_00)
    entries = [terminal.sale(each) for each in codes]

    answer = await terminal.submit(*reversed(entries))

    receipt = signed.verify_receipt(answer.receipt, keys_of(terminal))
    assert receipt.batch == answer.batch.name
    assert receipt.terminal == terminal.name
    assert list(receipt.sequences) == [1, 2]
    hashes = [signed.entry_hash(entry.content) for entry in entries]
    assert receipt.entries_hash == signed.receipt_hash(hashes)
    assert [result.index for result in answer.entries] == [0, 1]
    assert all(result.item and not result.refusal for result in answer.entries)
    assert answer.batch.item_count == 2
    (event,) = await market.events("batch_received")
    assert event.batch_received.batch.name == answer.batch.name
    items = await terminal.results(answer.batch)
    assert [item.sequence for item in items] == [1, 2]
    # By place in the request.
    assert [result.item for result in answer.entries] == [items[1].name, items[0].name]


async def test_the_same_request_again_is_answered_the_same(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    request_id = str(uuid4())
    sale = terminal.sale(issued)
    first = await terminal.submit(sale, request_id=request_id)
    await terminal.results(first.batch)

    again = await terminal.submit(sale, request_id=request_id.upper())

    assert (again.receipt, again.entries) == (first.receipt, first.entries)
    assert again.batch.name == first.batch.name
    assert again.batch.settled_count == 1
    refusal = await refused(terminal.submit(sale, sale, request_id=request_id))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
    )
    assert len(await market.rows(tables.batches)) == 1


async def test_entries_that_came_before_have_their_first_result_in_every_batch(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(10_00, 10_00)
    entries = [terminal.sale(each) for each in codes]
    first = await terminal.submit(entries[0])
    await terminal.results(first.batch)

    second = await terminal.submit(*entries)

    items = await terminal.results(second.batch)
    assert [item.state for item in items] == [SETTLED, SETTLED]
    assert items[0].name == first.entries[0].item
    assert second.batch.item_count == 2
    assert len(await market.rows(tables.entries)) == 2
    assert await payer.balances() == (0, 1_980_00, 0, 0)
    receipt = signed.verify_receipt(second.receipt, keys_of(terminal))
    assert list(receipt.sequences) == [1, 2]


async def test_the_same_entry_twice_in_one_batch_is_one_item(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    sale = terminal.sale(issued)

    answer = await terminal.submit(sale, sale)

    assert answer.entries[0].item == answer.entries[1].item
    assert answer.batch.item_count == 1
    (item,) = await terminal.results(answer.batch)
    assert item.state == SETTLED


def broken_entries(terminal, issued):
    """(what arrives, why it is refused, what the words name): each in the place of a good entry."""
    fresh = {"sequence": 90, "previous": bytes(32)}
    good = terminal.sale(issued, **fresh)
    forged = signed.sign_entry(
        journal_pb2.Entry.FromString(good.content), Ed25519PrivateKey.generate()
    )
    tampered = journal_pb2.SignedEntry(content=good.content + b"\x00", signature=good.signature)
    noise = b"\xff\xff\xff"
    unreadable = journal_pb2.SignedEntry(
        content=noise, signature=terminal.key.sign(b"TSJ1" + noise)
    )
    zero = terminal.sale(issued, 0, money=inr(0), **fresh)
    later = journal_pb2.Entry.FromString(good.content)
    later.record_time.seconds = 10**15
    return [
        (journal_pb2.SignedEntry(), MALFORMED, "content"),
        (journal_pb2.SignedEntry(content=good.content, signature=b"x"), MALFORMED, "signature"),
        (forged, FORGED, "did not sign"),
        (tampered, FORGED, "did not sign"),
        (unreadable, MALFORMED, "no Entry"),
        (terminal.sale(issued, terminal=names.terminal_name(uuid4(), uuid4()), **fresh),
         MALFORMED, "terminal"),
        (zero, MALFORMED, "sale.amount"),
        (terminal.sale("0" * 15 + "U", 1, **fresh), MALFORMED, "sale.code"),
        (terminal.entry({}, **fresh), MALFORMED, "body"),
        (terminal.sale(issued, version=2, **fresh), MALFORMED, "version"),
        (terminal.sale(issued, sequence=0, previous=bytes(32)), MALFORMED, "sequence"),
        (signed.sign_entry(later, terminal.key), MALFORMED, ""),
    ]  # fmt: skip


async def test_a_broken_entry_is_answered_in_its_place_and_stops_none_of_the_others(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    broken = broken_entries(terminal, issued)

    answer = await terminal.submit(*(each[0] for each in broken), terminal.sale(issued))

    for result, (_, reason, words) in zip(answer.entries, broken, strict=False):
        assert result.refusal == reason, words
        assert words in result.detail
        assert result.item == ""
    (item,) = await terminal.results(answer.batch)
    assert (item.state, item.reason) == (SETTLED, Reason.REASON_SETTLED)
    assert answer.batch.item_count == 1


async def test_a_malformed_sale_stands_in_the_journal_all_the_same(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    malformed = terminal.sale(issued, money=inr(-5))

    answer = await terminal.submit(malformed, terminal.sale(issued))

    assert [result.refusal for result in answer.entries] == [MALFORMED, 0]
    receipt = signed.verify_receipt(answer.receipt, keys_of(terminal))
    assert list(receipt.sequences) == [1, 2]
    # So what follows it has no gap before it.
    (item,) = await terminal.results(answer.batch)
    assert item.reason == Reason.REASON_SETTLED
    again = await terminal.submit(malformed)
    assert again.entries[0].refusal == MALFORMED


async def test_a_batch_of_nothing_but_broken_entries_is_done_at_once(market):
    terminal = await market.a_terminal()

    answer = await terminal.submit(journal_pb2.SignedEntry())

    assert (answer.batch.state, answer.batch.item_count) == (DONE, 0)
    assert list(signed.verify_receipt(answer.receipt, keys_of(terminal)).sequences) == []
    async with asyncio.timeout(5):
        seen = [each async for each in terminal.sync.WatchBatch(watch(answer.batch))]
    assert [len(each.items) for each in seen] == [0]


async def test_another_entrys_item_id_is_refused(market):
    payer, terminal, other = (
        await market.a_payer(),
        await market.a_terminal(),
        await market.a_terminal(),
    )
    codes = await payer.issue(10_00, 10_00, 10_00)
    item_id = str(uuid7())
    first = await terminal.submit(terminal.sale(codes[0], item_id=item_id))

    second = await terminal.submit(terminal.sale(codes[1], item_id=item_id))
    third = await other.submit(other.sale(codes[2], item_id=item_id))

    for answer in (second, third):
        assert answer.entries[0].refusal == MALFORMED
        assert answer.entries[0].detail == "sale.item_id: another entry has it"
        assert answer.entries[0].item == ""
    assert [item.state for item in await terminal.results(first.batch)] == [SETTLED]


async def test_a_journal_full_of_holes_arrives_whole_and_is_filled_later(market):
    terminal = await market.a_terminal()
    chain = [terminal.entry({"guesses": {}}) for _ in range(1_000)]

    # 334 runs of one number, and the numbers before them.
    holed = await terminal.submit(*chain[::3])
    rest = [entry for place, entry in enumerate(chain) if place % 3]
    filled = [await terminal.submit(*part) for part in (rest[:333], rest[300:])]

    receipts = [signed.verify_receipt(each.receipt, keys_of(terminal)) for each in filled]
    assert len(signed.verify_receipt(holed.receipt, keys_of(terminal)).sequences) == 334
    assert [len(receipt.sequences) for receipt in receipts] == [333, 366]
    assert {result.refusal for each in (holed, *filled) for result in each.entries} == {0}
    head = await terminal.sync.GetJournalHead(pb.GetJournalHeadRequest())
    assert (head.sequence, head.hash) == (1_000, signed.entry_hash(chain[-1].content))
    async with market.engine.connect() as connection:
        stored = (await connection.execute(sa.select(tables.entries.c.sequence))).scalars().all()
    assert sorted(stored) == list(range(1, 1_001))


async def test_what_needs_no_payment_is_answered_with_the_upload(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    market.line.cut = True

    answer = await terminal.submit(terminal.sale(issued), terminal.sale("0" * 16, 1_00))
    first = await anext(aiter(terminal.sync.WatchBatch(watch(answer.batch))))

    batch = answer.batch
    assert (batch.received_count, batch.refused_count, batch.state) == (1, 1, batch.STATE_SETTLING)
    assert [item.reason for item in first.items] == [Reason.REASON_UNKNOWN_CODE]
    market.line.cut = False


async def test_an_import_is_no_sale(market):
    terminal = await market.a_terminal()
    imported = terminal.entry({"imported": journal_pb2.Imported(note="new till")})

    answer = await terminal.submit(imported)

    assert (answer.entries[0].item, answer.entries[0].refusal) == ("", 0)
    assert answer.batch.state == DONE


async def test_wrong_codes_that_a_journal_tells_of_are_told_once_and_in_event_time(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(*[10_00] * 4)
    quiet = terminal.sale(codes[0])
    guessed = terminal.sale(codes[1], wrong_codes=4)
    ahead = terminal.sale(codes[2], at=market.clock() + timedelta(days=1), wrong_codes=2)
    unsold = terminal.entry({"guesses": journal_pb2.Guesses()}, wrong_codes=1)

    await terminal.submit(quiet)
    assert await market.events("wrong_codes_entered") == []
    await terminal.submit(quiet, guessed, ahead, unsold)
    await terminal.submit(guessed, ahead)

    (event,) = await market.events("wrong_codes_entered")
    told = event.wrong_codes_entered
    assert (event.subject, told.terminal) == (terminal.name, terminal.name)
    assert event.audience == [terminal.vendor.name]
    assert [each.count for each in told.entered] == [4, 2, 1]
    at = [each.time for each in told.entered]
    assert at[0] == journal_pb2.Entry.FromString(guessed.content).record_time
    # A date that cannot be is not believed.
    assert at[1] == at[2] == event.occur_time


async def test_a_vendor_uploads_its_broken_terminals_journal(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    vendor = market.caller(terminal.vendor.name, "VENDOR")

    answer = await terminal.submit(terminal.sale(issued), sync=vendor.sync, terminal=terminal.name)

    (item,) = await terminal.results(answer.batch)
    assert item.state == SETTLED
    assert (await vendor.sync.GetBatch(pb.GetBatchRequest(name=answer.batch.name))).items
    request = pb.GetJournalHeadRequest(terminal=terminal.name)
    assert (await vendor.sync.GetJournalHead(request)).sequence == 1


async def test_nobody_reaches_anothers_journal(market):
    payer = await market.a_payer()
    (issued,) = await payer.issue(10_00)
    terminal = await market.a_terminal()
    neighbour = await market.a_terminal(terminal.vendor)
    stranger = market.caller((await market.a_vendor()).name, "VENDOR").sync
    own = market.caller(terminal.vendor.name, "VENDOR").sync
    sale = terminal.sale(issued)
    batch = (await terminal.submit(sale)).batch

    for sync in (neighbour.sync, stranger):
        for call in (
            terminal.submit(sale, sync=sync, terminal=terminal.name),
            sync.GetJournalHead(pb.GetJournalHeadRequest(terminal=terminal.name)),
            sync.ListItems(pb.ListItemsRequest(parent=terminal.name)),
        ):
            refusal = await refused(call)
            assert refusal.reason == "TERMINAL_NOT_FOUND"
            assert refusal.metadata == {"terminal": terminal.name}
        request = pb.GetBatchRequest(name=batch.name)
        refusal = await refused(sync.GetBatch(request))
        assert (refusal.reason, refusal.metadata) == ("BATCH_NOT_FOUND", {"batch": batch.name})
        assert (await refused(first_of(sync.WatchBatch(watch(batch))))).reason == "BATCH_NOT_FOUND"
    # A vendor says which terminal; its id under another vendor's name is nobody's.
    assert (await refused(terminal.submit(sale, sync=own))).reason == "TERMINAL_NOT_FOUND"
    mixed = names.terminal_name(names.last_id(neighbour.vendor.name), uuid4())
    assert (await refused(terminal.submit(sale, sync=own, terminal=mixed))).reason == (
        "TERMINAL_NOT_FOUND"
    )


async def test_a_full_queue_takes_nothing_but_answers_what_it_has(market, monkeypatch):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(10_00, 10_00)
    sales = [terminal.sale(each) for each in codes]
    request_id = str(uuid4())
    market.line.cut = True
    await terminal.submit(sales[0], request_id=request_id)
    monkeypatch.setattr("services.offline.intake._COUNT_EVERY", timedelta())
    async with market.replica(backlog_max=1) as full:
        sync = terminal.at(full)
        refusal = await refused(terminal.submit(sales[1], sync=sync))
        again = await terminal.submit(sales[0], sync=sync, request_id=request_id)

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refusal.retry_after == timedelta(seconds=5)
    assert again.entries[0].item
    assert len(await market.rows(tables.entries)) == 1


@pytest.mark.parametrize("count", [0, 501])
async def test_a_batch_holds_1_to_500_entries(market, count):
    terminal = await market.a_terminal()
    entry = terminal.entry({"imported": journal_pb2.Imported()})

    assert (await refused(terminal.submit(*[entry] * count))).reason == "FIELDS_INVALID"


def watch(batch, cursor=""):
    return pb.WatchBatchRequest(name=batch.name, cursor=cursor)


def names_in(messages):
    return {item.name for message in messages for item in message.items}


async def first_of(stream):
    async for message in stream:
        return message
    return None


async def test_watching_a_batch_shows_results_as_they_come_and_ends(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(10_00, 10_00)
    market.line.open.clear()
    batch = (await terminal.submit(*(terminal.sale(each) for each in codes))).batch
    stream = aiter(terminal.sync.WatchBatch(watch(batch)))

    start = await anext(stream)
    assert not start.items
    assert start.batch.received_count == 2
    market.line.open.set()
    async with asyncio.timeout(10):
        rest = [each async for each in stream]

    assert [item.state for each in rest for item in each.items] == [SETTLED, SETTLED]
    assert rest[-1].batch.state == DONE
    assert rest[-1].batch.settled_count == 2


async def test_who_comes_late_sees_every_result_and_who_resumes_goes_on(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(10_00, 10_00)
    batch = (await terminal.submit(*(terminal.sale(each) for each in codes))).batch
    await terminal.results(batch)

    async with asyncio.timeout(5):
        late = [each async for each in terminal.sync.WatchBatch(watch(batch))]
        resumed = [each async for each in terminal.sync.WatchBatch(watch(batch, late[0].cursor))]

    assert [[item.state for item in each.items] for each in late] == [[SETTLED, SETTLED]]
    # A result may come twice; the stream ends.
    assert names_in(resumed) == names_in(late)
    bad = await refused(first_of(terminal.sync.WatchBatch(watch(batch, "yesterday"))))
    assert bad.reason == "CURSOR_EXPIRED"


async def test_resuming_in_the_middle_misses_nothing(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    codes = await payer.issue(10_00, 10_00)
    market.line.open.clear()
    batch = (await terminal.submit(*(terminal.sale(each) for each in codes))).batch
    cursor = (await terminal.sync.WatchBatch(watch(batch)).read()).cursor

    stream = aiter(terminal.sync.WatchBatch(watch(batch, cursor)))
    assert not (await anext(stream)).items
    market.line.open.set()
    async with asyncio.timeout(10):
        seen = names_in([each async for each in stream])

    assert len(seen) == 2


async def test_statements_of_a_vendor_and_of_a_terminal_come_in_pages(market):
    payer = await market.a_payer()
    terminal = await market.a_terminal()
    neighbour = await market.a_terminal(terminal.vendor)
    codes = await payer.issue(*[10_00] * 5)
    mine = [(await terminal.sell(each)).name for each in codes[:3]]
    theirs = [(await neighbour.sell(each)).name for each in codes[3:]]
    vendor = market.caller(terminal.vendor.name, "VENDOR").sync

    async def every(sync, parent):
        request, seen = pb.ListItemsRequest(parent=parent, page_size=2), []
        while True:
            answer = await sync.ListItems(request)
            seen += [item.name for item in answer.items]
            request.page_token = answer.next_page_token
            if not request.page_token:
                return seen

    assert await every(vendor, terminal.vendor.name) == [*theirs[::-1], *mine[::-1]]
    assert await every(vendor, terminal.name) == mine[::-1]
    assert await every(terminal.sync, terminal.name) == mine[::-1]
    assert await every(market.admin.sync, terminal.vendor.name) == [*theirs[::-1], *mine[::-1]]
    assert (
        await refused(terminal.sync.ListItems(pb.ListItemsRequest(parent=terminal.vendor.name)))
    ).reason == "TERMINAL_NOT_FOUND"
    token = (
        await vendor.ListItems(pb.ListItemsRequest(parent=terminal.name, page_size=1))
    ).next_page_token
    other = pb.ListItemsRequest(parent=neighbour.name, page_token=token)
    assert (await refused(vendor.ListItems(other))).reason == "PAGE_TOKEN_INVALID"


async def test_an_item_without_a_result_says_so(market):
    payer, terminal = await market.a_payer(), await market.a_terminal()
    (issued,) = await payer.issue(10_00)
    market.line.open.clear()

    batch = (await terminal.submit(terminal.sale(issued, 4_00))).batch

    (item,) = (await terminal.get(batch)).items
    assert (item.state, item.reason, item.liability) == (RECEIVED, 0, 0)
    assert item.amount == inr(4_00)
    assert not item.HasField("decide_time")
    assert not item.payment
    market.line.open.set()
    (item,) = await terminal.results(batch)
    assert item.payment
    assert item.returned == inr(6_00)
    assert item.HasField("decide_time")
    assert item.liability == offline_pb2.LIABILITY_NONE
