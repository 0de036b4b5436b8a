"""Codes as their owners meet them: issued, listed, revoked, refused, over a real payment service."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest
import sqlalchemy as sa
from uuid_utils import UUID, uuid4

from protocol import code as protocol
from protocol import voucher
from services import names
from services.offline.domain.liability import RULES
from services.offline.domain.right import Level, Mark
from services.offline.store import tables
from tallystick.offline.v1 import code_service_pb2 as pb
from tallystick.offline.v1 import offline_pb2
from tests.event_stream import an_event, publish
from tests.eventually import eventually
from tests.offline_stack import (
    NORMAL,
    REDUCED,
    SUSPENDED,
    TERMS,
    Code,
    Payer,
    Reason,
    to_issue,
)
from tests.payment_stack import refused


async def test_codes_are_shown_once_and_their_money_is_set_aside(market):
    payer = await market.a_payer(400_00)

    first, second = await payer.issue(100_00, 50_00)

    assert [each.code.value.minor_units for each in (first, second)] == [100_00, 50_00]
    assert await payer.balances() == (0, 250_00, 150_00, 0)
    assert first.symbols == protocol.pretty(protocol.parse(first.symbols).symbols())
    assert first.code.hint == first.symbols[:4]
    assert first.code.state == Code.STATE_ISSUED
    assert first.voucher == b""
    listed = await payer.list()
    assert listed == [second.code, first.code]
    (event,) = await market.events("codes_issued")
    assert list(event.codes_issued.codes) == [first.code, second.code]
    assert list(event.audience) == [payer.name]


async def test_symbols_and_serial_stand_nowhere_in_the_database(market):
    payer = await market.a_payer()
    (issued,) = await payer.vouchers(100_00)
    symbols = protocol.normalize(issued.symbols)
    serial = protocol.parse(symbols).serial.to_bytes(4, "big")

    tables_ = tables.metadata.tables.values()
    rows = [row for table in tables_ for row in await market.rows(table)]
    raw = b"|".join(
        value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row
    )

    assert len(raw) > 1_000
    for secret in (symbols.encode(), symbols[4:].encode(), serial, issued.voucher):
        assert secret not in raw


async def test_times_of_a_code(market):
    payer = await market.a_payer()
    (issued,) = await payer.issue(10_00)
    code = issued.code

    issue, expire = code.issue_time.ToDatetime(), code.expire_time.ToDatetime()
    # To the end of the third day after the day it was issued, UTC.
    midnight = issue.replace(hour=0, minute=0, second=0, microsecond=0)
    assert expire == midnight + timedelta(days=4)
    assert code.release_time.ToDatetime() == expire + timedelta(hours=96)


async def test_a_voucher_is_the_same_record_for_the_payers_device(market):
    payer = await market.a_payer()
    (issued,) = await payer.vouchers(100_00)
    terminal = await market.a_terminal()

    keys = {key.key_id: key.public_key for key in terminal.bundle.issuer_keys}
    shown = voucher.verify(issued.voucher, keys)

    typed = protocol.parse(issued.symbols)
    assert (shown.serial, shown.keyset, shown.tier, shown.expiry_day) == (
        typed.serial,
        typed.keyset,
        typed.tier,
        typed.expiry_day,
    )
    assert (shown.minor_units, shown.currency, shown.scope) == (100_00, "INR", "main")
    assert shown.device_key == payer.device.public_key().public_bytes_raw()


async def test_a_terminals_bundle_verifies_a_code(market):
    payer = await market.a_payer()
    (issued,) = await payer.issue(100_00, scope="island")
    island = await market.a_terminal(scope="island")
    main = await market.a_terminal()
    typed = protocol.parse(issued.symbols)

    def verifies(bundle):
        (key,) = [each for each in bundle.code_keys if each.keyset == typed.keyset]
        return protocol.verify(typed, key=key.key, issuer=bundle.issuer, currency="INR")

    assert verifies(island.bundle)
    assert not verifies(main.bundle)


async def test_the_same_request_again_answers_the_same_symbols_for_a_quarter_of_an_hour(market):
    payer = await market.a_payer()
    request = to_issue(100_00, 50_00)
    first = await payer.codes.IssueCodes(request)

    again = await payer.codes.IssueCodes(request)
    market.clock.advance(timedelta(minutes=15))
    refusal = await refused(payer.codes.IssueCodes(request))

    assert again == first
    assert refusal.reason == "CODES_ALREADY_SHOWN"
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.metadata["codes"] == ", ".join(each.code.name for each in first.codes)
    assert (await payer.balances())[2] == 150_00
    # What is shown no more is kept no more.
    await market.until(sa.select(tables.issues).where(tables.issues.c.sealed.is_(None)))


async def test_copies_of_one_request_at_once_make_codes_once(market):
    payer = await market.a_payer()
    request = to_issue(100_00)
    async with market.replica() as other:
        elsewhere = Payer(other, payer.ledger)

        answers = await asyncio.gather(
            *(who.codes.IssueCodes(request) for who in (payer, elsewhere) * 5)
        )

    assert all(answer == answers[0] for answer in answers)
    assert len(await payer.list()) == 1


async def test_requests_at_once_do_not_go_beyond_the_cap(market):
    payer = await market.a_payer()
    async with market.replica() as other:
        elsewhere = Payer(other, payer.ledger)
        answers = await asyncio.gather(
            *(who.codes.IssueCodes(to_issue(500_00, 500_00)) for who in (payer, elsewhere) * 3),
            return_exceptions=True,
        )

    issued = [answer for answer in answers if not isinstance(answer, Exception)]
    assert len(issued) == 2
    assert await payer.balances() == (0, 0, 2_000_00, 0)


@pytest.mark.parametrize(
    ("changes", "reason", "metadata"),
    [
        (
            {"currency_code": "USD", "scope": "moon", "values": [1]},
            "CURRENCY_UNSUPPORTED",
            {"currencyCode": "USD", "supported": "INR, KES"},
        ),
        (
            {"scope": "moon", "values": [1]},
            "SCOPE_UNKNOWN",
            {"scope": "moon", "supported": "island, main"},
        ),
        (
            {"values": [100_00, 99]},
            "VALUE_NOT_OFFERED",
            {
                "minorUnits": "99",
                "currencyCode": "INR",
                "offered": "1000, 2000, 5000, 10000, 20000, 50000",
            },
        ),
    ],
)
async def test_what_is_not_offered_is_refused(market, changes, reason, metadata):
    payer = await market.a_payer()

    refusal = await refused(payer.codes.IssueCodes(to_issue(100_00, **changes)))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refusal.domain, refusal.reason) == ("offline.tallystick", reason)
    assert refusal.metadata == metadata
    assert await payer.list() == []


async def test_a_request_id_with_another_body_is_refused(market):
    payer = await market.a_payer()
    request = to_issue(100_00)
    await payer.codes.IssueCodes(request)

    other = to_issue(50_00, request_id=request.request_id)
    refusal = await refused(payer.codes.IssueCodes(other))

    assert refusal.reason == "REQUEST_ID_REUSED"
    assert refusal.metadata == {"requestId": request.request_id}
    assert len(await payer.list()) == 1


async def test_ten_live_codes_are_the_most(market):
    payer = await market.a_payer()
    await payer.issue(*[10_00] * 5)
    await payer.issue(*[10_00] * 5)

    refusal = await refused(payer.codes.IssueCodes(to_issue(10_00)))

    assert refusal.reason == "TOO_MANY_CODES"
    assert refusal.metadata == {"limit": "10", "live": "10"}


async def test_the_cap_counts_what_live_codes_are_worth(market):
    payer = await market.a_payer()
    await payer.issue(500_00, 500_00, 500_00)

    refusal = await refused(payer.codes.IssueCodes(to_issue(500_00, 10_00)))

    assert refusal.reason == "OFFLINE_CAP_EXCEEDED"
    assert refusal.metadata == {
        "capMinorUnits": "200000",
        "liveMinorUnits": "150000",
        "currencyCode": "INR",
    }
    await payer.issue(500_00)


async def test_revoked_codes_count_until_their_money_is_back(market):
    payer = await market.a_payer()
    codes = await payer.issue(500_00, 500_00, 500_00, 500_00)
    await payer.revoke(*codes)

    assert (await refused(payer.codes.IssueCodes(to_issue(10_00)))).reason == (
        "OFFLINE_CAP_EXCEEDED"
    )
    market.clock.advance(timedelta(days=9))
    await market.release()

    await payer.issue(500_00)


async def test_without_the_money_there_are_no_codes_and_no_traces(market):
    payer = await market.a_payer(100_00)
    request = to_issue(100_00, 50_00)

    refusal = await refused(payer.codes.IssueCodes(request))

    assert refusal.reason == "INSUFFICIENT_FUNDS"
    assert refusal.metadata == {
        "askedMinorUnits": "15000",
        "availableMinorUnits": "10000",
        "currencyCode": "INR",
    }
    assert await payer.list() == []
    # The request was not taken up, so the same id may ask again, and for something else.
    smaller = to_issue(100_00, request_id=request.request_id)
    assert len((await payer.codes.IssueCodes(smaller)).codes) == 1


async def test_who_may_not_move_money_gets_no_codes(market):
    payer = await market.a_payer()
    nobody = market.caller(names.user_name(uuid4()), "USER")
    await market.bank.knows(payer.ledger, active=False, version=9)

    for codes, wallet in ((payer.codes, payer.ledger.wallet_name), (nobody.codes, None)):
        refusal = await refused(codes.IssueCodes(to_issue(100_00)))
        assert refusal.reason == "WALLET_NOT_ACTIVE"
        assert wallet in {None, refusal.metadata["wallet"]}


async def test_fields_that_break_the_contract(market):
    payer = await market.a_payer()

    for request in (
        to_issue(),
        to_issue(*[10_00] * 6),
        to_issue(10_00, request_id="1"),
        to_issue(10_00, device_public_key=b"short"),
        to_issue(10_00, device_public_key=(1).to_bytes(32, "little")),
        to_issue(10_00, scope="No Such"),
        to_issue(-1),
    ):
        assert (await refused(payer.codes.IssueCodes(request))).reason == "FIELDS_INVALID"


async def test_a_vendor_may_be_a_payer_and_a_terminal_may_not(market):
    vendor = await market.a_payer(role="VENDOR")
    terminal = await market.a_terminal()
    calls = market.caller(terminal.name, "TERMINAL")

    assert len(await vendor.issue(10_00)) == 1
    refusal = await refused(calls.codes.IssueCodes(to_issue(10_00)))

    assert refusal.reason == "CALLER_NOT_ALLOWED"
    assert (await calls.codes.GetOfflineTerms(pb.GetOfflineTermsRequest())).issuer == "Tallystick"


async def test_codes_are_listed_in_pages_newest_first(market):
    payer = await market.a_payer()
    made = [(await payer.issue(10_00))[0].code.name for _ in range(5)]

    request = pb.ListCodesRequest(parent=payer.name, page_size=2)
    seen = []
    while True:
        answer = await payer.codes.ListCodes(request)
        seen += [code.name for code in answer.codes]
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token

    assert seen == made[::-1]
    request.live = True
    assert (await refused(payer.codes.ListCodes(request))).reason == "PAGE_TOKEN_INVALID"


async def test_live_codes_only(market):
    payer = await market.a_payer()
    terminal = await market.a_terminal()
    spent, revoked, left = await payer.issue(10_00, 10_00, 10_00)
    await terminal.sell(spent)
    await payer.revoke(revoked)

    assert {code.name for code in await payer.list(live=True)} == {
        revoked.code.name,
        left.code.name,
    }


async def test_codes_and_rights_are_ones_own_or_an_operators_to_see(market):
    payer, other = await market.a_payer(), await market.a_payer(0)
    await payer.issue(10_00)
    codes = pb.ListCodesRequest(parent=payer.name)
    right = pb.GetOfflineRightRequest(owner=payer.name)

    for call in (other.codes.ListCodes(codes), other.codes.GetOfflineRight(right)):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "OWNER_NOT_FOUND")
        assert refusal.metadata == {"owner": payer.name}
    assert len((await market.admin.codes.ListCodes(codes)).codes) == 1
    assert (await market.admin.codes.GetOfflineRight(right)).right.level == NORMAL


async def test_revoking_stops_a_code_and_its_money_comes_back_after_the_upload_window(market):
    payer = await market.a_payer(100_00)
    (issued,) = await payer.issue(100_00)

    (revoked,) = await payer.revoke(issued)

    assert revoked.state == Code.STATE_REVOKED
    assert await payer.balances() == (0, 0, 100_00, 0)
    assert await payer.revoke(issued) == [revoked]
    (event,) = await market.events("codes_ended")
    assert event.codes_ended.reason == "lost"
    assert list(event.codes_ended.codes) == [revoked]
    market.clock.advance(timedelta(days=9))
    await market.release()
    assert await payer.balances() == (0, 100_00, 0, 0)
    # It stays what it was; nothing is left to stop.
    assert (await payer.list())[0].state == Code.STATE_REVOKED
    request = pb.RevokeCodesRequest(names=[issued.code.name])
    refusal = await refused(payer.codes.RevokeCodes(request))
    assert refusal.reason == "CODE_ENDED"
    assert refusal.metadata == {"code": issued.code.name, "state": "REVOKED"}


async def test_codes_that_are_not_ones_own_or_ended_are_not_revoked_nor_their_neighbours(market):
    payer, other = await market.a_payer(), await market.a_payer()
    terminal = await market.a_terminal()
    good, spent = await payer.issue(10_00, 10_00)
    (theirs,) = await other.issue(10_00)
    await terminal.sell(spent)

    def revoke(*named):
        return payer.codes.RevokeCodes(pb.RevokeCodesRequest(names=[good.code.name, *named]))

    unknown = names.code_name(uuid4())
    assert (await refused(revoke(unknown))).metadata == {"code": unknown}
    assert (await refused(revoke(theirs.code.name))).reason == "CODE_NOT_FOUND"
    refusal = await refused(revoke(spent.code.name))
    assert (refusal.reason, refusal.metadata["state"]) == ("CODE_ENDED", "SPENT")
    assert (await payer.state_of(good)).state == Code.STATE_ISSUED


async def test_codes_nobody_spent_expire_and_their_money_goes_back(market):
    payer = await market.a_payer(100_00)
    (issued,) = await payer.issue(100_00)
    market.clock.advance(timedelta(days=7))
    await market.release()
    assert (await payer.balances())[2] == 100_00

    market.clock.advance(timedelta(days=2))
    await market.release()

    assert await payer.balances() == (0, 100_00, 0, 0)
    assert (await payer.state_of(issued)).state == Code.STATE_EXPIRED
    (event,) = await market.events("codes_ended")
    assert event.codes_ended.codes[0].state == Code.STATE_EXPIRED


async def test_the_terms(market):
    terms = await market.admin.codes.GetOfflineTerms(pb.GetOfflineTermsRequest())

    offered = {
        (tier.number, tier.value.minor_units, tier.value.currency_code) for tier in terms.tiers
    }
    assert offered == {
        (number, value, currency)
        for number, value in enumerate(TERMS.values)
        for currency in ("INR", "KES")
    }
    assert list(terms.scopes) == ["island", "main"]
    assert [cap.minor_units for cap in terms.caps] == [2_000_00, 2_000_00]
    assert (terms.live_codes_max, terms.spend_days, terms.upload_hours) == (10, 3, 96)
    assert [(rule.reason, rule.liability, rule.explanation) for rule in terms.liabilities] == [
        (int(rule.reason), int(rule.liability), rule.explanation) for rule in RULES
    ]


def to_set(payer, level, reason="they asked"):
    return pb.SetOfflineRightRequest(owner=payer.name, level=level, reason=reason)


async def test_an_operator_suspends_and_live_codes_are_revoked_at_once(market):
    payer = await market.a_payer()
    issued, _ = await payer.issue(100_00, 50_00)

    answer = await market.admin.codes.SetOfflineRight(to_set(payer, SUSPENDED))

    assert answer.right == await payer.right()
    assert (answer.right.level, answer.right.reason) == (SUSPENDED, "they asked")
    assert [cap.minor_units for cap in answer.right.caps] == [0, 0]
    assert {code.state for code in await payer.list()} == {Code.STATE_REVOKED}
    refusal = await refused(payer.codes.IssueCodes(to_issue(10_00)))
    assert refusal.reason == "OFFLINE_SUSPENDED"
    assert refusal.metadata == {"reason": "they asked"}
    changed, ended = await market.events("offline_right_changed", "codes_ended")
    assert changed.offline_right_changed.right == answer.right
    assert changed.actor == market.admin.name
    assert len(ended.codes_ended.codes) == 2
    # Setting what is set succeeds and tells nobody.
    again = await market.admin.codes.SetOfflineRight(to_set(payer, SUSPENDED))
    assert again == answer
    assert len(await market.events("offline_right_changed")) == 1
    await market.admin.codes.SetOfflineRight(to_set(payer, NORMAL))
    assert len(await payer.issue(10_00)) == 1
    assert (await payer.state_of(issued)).state == Code.STATE_REVOKED


async def test_a_reduced_right_is_a_quarter_of_the_cap(market):
    payer = await market.a_payer()
    await market.admin.codes.SetOfflineRight(to_set(payer, REDUCED))

    await payer.issue(500_00)

    refusal = await refused(payer.codes.IssueCodes(to_issue(10_00)))
    assert refusal.metadata["capMinorUnits"] == "50000"


async def test_what_fraud_says_counts_and_old_news_does_not(market, monkeypatch):
    payer = await market.a_payer()
    await payer.issue(100_00)
    said = {}
    monkeypatch.setattr(
        "services.offline.events.fraud_mark", lambda event: said.get(event.event_id)
    )

    async def say(level, seconds):
        at = market.clock() + timedelta(seconds=seconds)
        event = an_event("fraud", payer.name, at=at)
        said[event.event_id] = (payer.user_id, Mark(level, "a stolen phone"))
        await publish(market.redis, event)

    async def level():
        return (await payer.right()).level

    await say(Level.REDUCED, 0)
    await eventually(lambda: reached(level, REDUCED))
    await say(Level.SUSPENDED, 2)
    await eventually(lambda: reached(level, SUSPENDED))
    # Read again after a crash, say.
    await say(Level.NORMAL, 1)
    await say(Level.SUSPENDED, 3)
    heard = sa.select(tables.rights).where(tables.rights.c.fraud_time > market.clock())
    await market.until(heard)

    right = await payer.right()
    assert (right.level, right.reason) == (SUSPENDED, "a stolen phone")
    assert [code.state for code in await payer.list()] == [Code.STATE_REVOKED]
    # An operator's word does not lift it; the fraud service's does.
    await market.admin.codes.SetOfflineRight(to_set(payer, NORMAL))
    assert await level() == SUSPENDED
    await say(Level.NORMAL, 10)
    await eventually(lambda: reached(level, NORMAL))


async def reached(level, wanted):
    return await level() == wanted


async def test_only_operators_set_rights_rotate_and_see_double_spends(market):
    payer = await market.a_payer(0)

    for call in (
        payer.codes.SetOfflineRight(to_set(payer, NORMAL)),
        payer.codes.RotateKeyset(pb.RotateKeysetRequest()),
        payer.codes.ListDoubleSpends(pb.ListDoubleSpendsRequest()),
    ):
        assert (await refused(call)).reason == "CALLER_NOT_ALLOWED"


async def test_rotating_issues_under_the_next_key_and_the_old_codes_stay_good(market):
    payer = await market.a_payer()
    (old,) = await payer.issue(10_00)
    answer = await market.admin.codes.RotateKeyset(pb.RotateKeysetRequest())
    (new,) = await payer.issue(10_00)
    terminal = await market.a_terminal()

    assert answer.keyset == 1
    assert [protocol.parse(each.symbols).keyset for each in (old, new)] == [0, 1]
    assert {key.keyset for key in terminal.bundle.code_keys} == {0, 1}
    items = await terminal.settle(terminal.sale(old), terminal.sale(new))
    assert [item.reason for item in items] == [Reason.REASON_SETTLED] * 2


async def test_eight_keysets_are_the_most(market):
    for number in range(1, 8):
        answer = await market.admin.codes.RotateKeyset(pb.RotateKeysetRequest())
        assert answer.keyset == number

    refusal = await refused(market.admin.codes.RotateKeyset(pb.RotateKeysetRequest()))

    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "KEYSETS_IN_USE",
    )
    assert refusal.metadata["freeTime"] > market.clock().isoformat()
    market.clock.advance(timedelta(days=9, minutes=1))
    assert (await market.admin.codes.RotateKeyset(pb.RotateKeysetRequest())).keyset == 0


async def test_replicas_that_start_together_share_one_set_of_secrets(market):
    async with market.replica() as second, market.replica() as third:
        keys = [replica.server._keys.issuer_keys for replica in (market.first, second, third)]

    assert keys[0] == keys[1] == keys[2]
    assert len(await market.rows(tables.secrets)) == 2
    assert len(await market.rows(tables.keysets)) == 1


async def test_a_serial_that_is_in_use_is_not_used_twice(market):
    payer = await market.a_payer()
    numbers = iter([7, 7, 8])
    market.new_serial = lambda: next(numbers)

    (first,) = await payer.issue(10_00)
    (second,) = await payer.issue(10_00)

    assert [protocol.parse(each.symbols).serial for each in (first, second)] == [7, 8]


async def test_the_database_alone_does_not_give_up_its_secrets(market, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")

    with pytest.raises(Exception, match="TALLYSTICK_KEK_FILE does not open offline/"):
        async with market.replica(key_encryption_key_file=wrong):
            pass


async def test_offline_right_of_somebody_new_is_whole(market):
    right = await market.admin.codes.GetOfflineRight(
        pb.GetOfflineRightRequest(owner=names.user_name(UUID(int=5)))
    )

    assert right.right.level == offline_pb2.OfflineRight.LEVEL_NORMAL
    assert [cap.minor_units for cap in right.right.caps] == [2_000_00, 2_000_00]
    assert not right.right.HasField("update_time")
