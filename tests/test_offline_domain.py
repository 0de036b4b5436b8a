"""What the offline service decides, without anything around it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uuid_utils import UUID

from services.money import Money
from services.offline.domain import code as codes
from services.offline.domain import double_spend, journal, keyset, right, settlement
from services.offline.domain.code import Code, Release
from services.offline.domain.code import State as CodeState
from services.offline.domain.item import Entry, Liability, Proof, Reason, Spend, State, Work
from services.offline.domain.journal import Arrival, Known
from services.offline.domain.keyset import Keyset
from services.offline.domain.liability import RULES, liability
from services.offline.domain.right import Level, Mark, Right, Source
from services.offline.domain.settlement import Paid
from services.offline.domain.terms import Terms
from services.refusal import Refusal

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TERMS = Terms()


def inr(minor_units):
    return Money(minor_units, "INR")


def a_code(**changes):
    fields = {
        "code_id": UUID(int=1),
        "issue_id": UUID(int=2),
        "owner_id": UUID(int=3),
        "value": inr(100_00),
        "hint": "ABCD",
        "scope": "main",
        "state": CodeState.ISSUED,
        "release": Release.NONE,
        "issue_time": NOW - DAY,
        "expire_time": NOW + DAY,
        "release_time": NOW + 5 * DAY,
    }
    return Code(**fields | changes)


def an_entry(**changes):
    fields = {
        "entry_id": UUID(int=10),
        "vendor_id": UUID(int=11),
        "terminal_id": UUID(int=12),
        "sequence": 1,
        "content_hash": bytes(32),
        "record_time": NOW,
        "bundle_version": 1,
        "receive_time": NOW + HOUR,
        "batch_id": UUID(int=13),
        "place": 0,
        "item_id": UUID(int=14),
        "amount": inr(100_00),
        "proof": Proof.CODE,
        "proof_hash": bytes(32),
        "state": State.RECEIVED,
        "work": Work.DECIDE,
    }
    return Entry(**fields | changes)


def decide(entry=None, code=None, **changes):
    fields = {
        "scope": "main",
        "terminal_revoke_time": None,
        "vendor_active": True,
        "spent_by_same_vendor": False,
    }
    return settlement.decide(entry or an_entry(), code or a_code(), **fields | changes)


# What makes each reason apply, in the order of their numbers: changes to the entry, to the code, to the rest.
FLAWS = [
    (Reason.TERMINAL_REVOKED, {}, {}, {"terminal_revoke_time": NOW}),
    (Reason.UNKNOWN_CODE, {}, {"scope": "island"}, {}),
    (Reason.VOUCHER_INVALID, {"flaw": "The issuer did not sign this voucher."}, {}, {}),
    (Reason.AMOUNT_OVER_VALUE, {"amount": inr(100_01)}, {}, {}),
    (Reason.EXPIRED_AT_SPEND, {}, {"expire_time": NOW}, {}),
    (Reason.REVOKED_BEFORE_SPEND, {}, {"revoke_time": NOW}, {}),
    (Reason.DUPLICATE_CODE, {}, {"state": CodeState.SPENT}, {}),
    (Reason.LATE_UPLOAD, {}, {"release_time": NOW + HOUR}, {}),
    (Reason.VENDOR_NOT_APPROVED, {}, {}, {"vendor_active": False}),
    (Reason.SEQUENCE_GAP, {"doubt": Reason.SEQUENCE_GAP, "doubt_detail": "a gap"}, {}, {}),
]


@pytest.mark.parametrize("first", range(len(FLAWS)))
def test_the_first_reason_that_applies_counts(first):
    entry, code, rest = {}, {}, {}
    for _, *changes in FLAWS[first:]:
        entry, code, rest = entry | changes[0], code | changes[1], rest | changes[2]

    verdict = decide(an_entry(**entry), a_code(**code), **rest)

    assert verdict.reason is FLAWS[first][0]


def test_reasons_are_checked_in_the_order_of_their_numbers():
    assert [flaw[0] for flaw in FLAWS] == sorted(flaw[0] for flaw in FLAWS)


@pytest.mark.parametrize("flaw", FLAWS[:8], ids=lambda flaw: flaw[0].name)
def test_a_refusal_says_who_bears_the_loss_and_why(flaw):
    reason, entry, code, rest = flaw

    verdict = decide(an_entry(**entry), a_code(**code), **rest)

    assert verdict.state is State.REFUSED
    assert verdict.liability is liability(reason)
    assert verdict.detail.endswith(".")


@pytest.mark.parametrize("flaw", FLAWS[8:], ids=lambda flaw: flaw[0].name)
def test_a_doubt_refuses_nothing_the_money_is_to_be_held(flaw):
    reason, entry, code, rest = flaw

    verdict = decide(an_entry(**entry), a_code(**code), **rest)

    assert (verdict.state, verdict.reason) == (State.RECEIVED, reason)
    assert verdict.detail


def test_a_good_sale_is_to_be_paid():
    assert decide() == settlement.Verdict(State.RECEIVED, Reason.NONE)


@pytest.mark.parametrize("state", [CodeState.ABANDONED, CodeState.RESERVING])
def test_a_code_that_was_never_shown_was_never_issued(state):
    assert decide(code=a_code(state=state)).reason is Reason.UNKNOWN_CODE


def test_no_code_and_a_code_of_another_currency_are_unknown():
    assert (
        settlement.decide(
            an_entry(),
            None,
            scope="main",
            terminal_revoke_time=None,
            vendor_active=True,
            spent_by_same_vendor=False,
        ).reason
        is Reason.UNKNOWN_CODE
    )
    assert decide(code=a_code(value=Money(100_00, "KES"))).reason is Reason.UNKNOWN_CODE


def test_edges_of_time():
    a_moment = timedelta(microseconds=1)

    assert decide(terminal_revoke_time=NOW + a_moment).reason is Reason.NONE
    assert decide(code=a_code(expire_time=NOW + a_moment)).reason is Reason.NONE
    revoked = a_code(state=CodeState.REVOKED, revoke_time=NOW + a_moment)
    assert decide(code=revoked).reason is Reason.NONE
    assert decide(code=a_code(release_time=NOW + HOUR + a_moment)).reason is Reason.NONE


@pytest.mark.parametrize(
    "code",
    [
        a_code(state=CodeState.EXPIRED, release=Release.DONE),
        a_code(state=CodeState.EXPIRED, release=Release.DUE),
        a_code(state=CodeState.REVOKED, revoke_time=NOW + HOUR, release=Release.DONE),
    ],
)
def test_money_that_is_on_its_way_back_is_spent_by_nobody(code):
    assert decide(code=code).reason is Reason.LATE_UPLOAD


def test_a_code_taken_twice_by_one_vendor_is_that_vendors_loss():
    spent = a_code(state=CodeState.SPENT)

    assert decide(code=spent).liability is Liability.PAYER
    assert decide(code=spent, spent_by_same_vendor=True).liability is Liability.VENDOR


def test_the_table_of_liabilities_has_every_reason_once():
    assert sorted(rule.reason for rule in RULES) == sorted(set(Reason) - {Reason.NONE})


SPEND = Spend(UUID(int=1), UUID(int=3), 100_00, NOW - DAY)


@pytest.mark.parametrize(
    ("entry", "paid", "risk", "expected"),
    [
        ({}, Paid.SUCCESS, (), (State.SETTLED, Reason.SETTLED, 0)),
        ({"amount": inr(1)}, Paid.SUCCESS, (), (State.SETTLED, Reason.PARTIALLY_SETTLED, 99_99)),
        ({}, Paid.FLAGGED, ("VELOCITY",), (State.HELD, Reason.HELD_FOR_REVIEW, 0)),
        ({"amount": inr(1)}, Paid.FLAGGED, ("X",), (State.HELD, Reason.HELD_FOR_REVIEW, 99_99)),
        (
            {"reason": Reason.SEQUENCE_GAP},
            Paid.FLAGGED,
            ("SEQUENCE_GAP",),
            (State.HELD, Reason.SEQUENCE_GAP, 0),
        ),
        (
            {},
            Paid.FLAGGED,
            ("VENDOR_NOT_ACTIVE",),
            (State.HELD, Reason.VENDOR_NOT_APPROVED, 0),
        ),
        ({"amount": inr(1)}, Paid.FAILED, (), (State.REFUSED, Reason.REVIEW_REJECTED, 100_00)),
    ],
)
def test_what_payment_says_becomes_the_items_result(entry, paid, risk, expected):
    item = an_entry(spend=SPEND, work=Work.SETTLE, **entry)

    verdict = settlement.conclude(item, paid, risk)
    after = settlement.decided(item, verdict, now=NOW)

    assert (after.state, after.reason, after.returned(after.verdict)) == expected
    assert after.liability is liability(after.reason)
    assert after.verdict == verdict


def test_what_the_ledger_refuses_moved_nothing():
    item = an_entry(spend=SPEND, work=Work.SETTLE)

    verdict = settlement.refused_by_payment("SELF_PAYMENT", "x" * 500)
    after = settlement.decided(item, verdict, now=NOW)

    assert (after.state, after.returned(verdict)) == (State.REFUSED, None)
    assert after.detail.startswith("SELF_PAYMENT: xx")
    assert len(after.detail) == settlement.DETAIL_CHARACTERS_MAX


# A journal.


def a_hash(number):
    return bytes([number]) * 32


def an_arrival(sequence, **changes):
    fields = {
        "place": sequence,
        "sequence": sequence,
        "content_hash": a_hash(sequence),
        "previous_hash": a_hash(sequence - 1),
        "record_time": NOW - HOUR,
        "server_time": NOW - DAY,
        "bundle_version": 1,
        "item_id": UUID(int=100 + sequence),
    }
    return Arrival(**fields | changes)


def receive(*arrivals, known=None, taken=(), bundle_version=10**9, now=NOW):
    return journal.receive(arrivals, known or {}, taken, bundle_version=bundle_version, now=now)


def doubts(reception):
    return [placed.doubt for placed in reception.fresh]


@given(st.permutations([1, 2, 3, 4, 5]))
def test_entries_of_one_batch_may_come_in_any_order(order):
    reception = receive(*(an_arrival(sequence) for sequence in order))

    assert [placed.arrival.sequence for placed in reception.fresh] == [1, 2, 3, 4, 5]
    assert doubts(reception) == [Reason.NONE] * 5


def test_one_missing_entry_is_one_gap():
    reception = receive(*(an_arrival(sequence) for sequence in (1, 2, 4, 5)))

    assert doubts(reception) == [Reason.NONE, Reason.NONE, Reason.SEQUENCE_GAP, Reason.NONE]


def test_a_journal_that_does_not_begin_at_the_beginning_has_a_gap():
    assert doubts(receive(an_arrival(3))) == [Reason.SEQUENCE_GAP]
    assert doubts(receive(an_arrival(1, previous_hash=a_hash(9)))) == [Reason.SEQUENCE_GAP]


def test_an_entry_connects_to_what_is_on_record():
    known = {3: [Known(a_hash(3), NOW - DAY, 1, None)]}

    assert doubts(receive(an_arrival(4), known=known)) == [Reason.NONE]
    torn = an_arrival(4, previous_hash=a_hash(77))
    assert doubts(receive(torn, known=known)) == [Reason.SEQUENCE_GAP]


def test_the_same_entry_again_is_known_by_its_content():
    item = UUID(int=104)
    known = {4: [Known(a_hash(4), NOW - HOUR, 1, item)]}

    reception = receive(an_arrival(4), an_arrival(4, place=9), known=known, taken={item})

    assert reception.fresh == ()
    assert reception.repeated == {4: item, 9: item}


def test_another_entry_with_a_number_that_was_used_is_held():
    known = {3: [Known(a_hash(3), NOW - DAY, 1, None)], 4: [Known(a_hash(4), NOW - HOUR, 1, None)]}
    fork = an_arrival(4, content_hash=a_hash(44))
    after_the_fork = an_arrival(5, previous_hash=a_hash(44))

    reception = receive(fork, after_the_fork, known=known)

    assert doubts(reception) == [Reason.SEQUENCE_REUSED, Reason.NONE]


def test_of_two_entries_with_one_number_in_one_batch_the_first_counts():
    reception = receive(
        an_arrival(1), an_arrival(1, place=2, content_hash=a_hash(11), item_id=None)
    )

    assert doubts(reception) == [Reason.NONE, Reason.SEQUENCE_REUSED]


def test_another_entrys_item_id_makes_no_item():
    first, second = an_arrival(1), an_arrival(2, item_id=UUID(int=101))
    third = an_arrival(3, item_id=UUID(int=7))

    reception = receive(first, second, third, taken={UUID(int=7)})

    assert [placed.misnamed for placed in reception.fresh] == [False, True, True]
    assert doubts(reception) == [Reason.NONE] * 3


@pytest.mark.parametrize(
    ("changes", "implausible"),
    [
        ({"record_time": NOW + timedelta(minutes=5)}, False),
        ({"record_time": NOW + timedelta(minutes=5, microseconds=1)}, True),
        ({"record_time": NOW + 365 * DAY}, True),
        ({"record_time": NOW - DAY}, False),
        ({"record_time": NOW - DAY - timedelta(microseconds=1)}, True),
        ({"record_time": NOW - 365 * DAY}, True),
        ({"bundle_version": 10**9}, False),
        ({"bundle_version": 10**9 + 1}, True),
        ({"bundle_version": 2**62}, True),
    ],
)
def test_a_clock_that_cannot_be_right(changes, implausible):
    (doubt,) = doubts(receive(an_arrival(1, previous_hash=journal.GENESIS, **changes)))

    assert doubt is (Reason.CLOCK_IMPLAUSIBLE if implausible else Reason.NONE)


def test_time_before_the_bundle_or_the_entry_before_is_implausible():
    version = 10**6 * 1_700_000_000
    named = an_arrival(
        1,
        previous_hash=journal.GENESIS,
        bundle_version=version,
        server_time=journal.bundle_time(1),
        record_time=journal.bundle_time(version - 1),
    )
    assert doubts(receive(named, bundle_version=version)) == [Reason.CLOCK_IMPLAUSIBLE]

    backwards = an_arrival(2, record_time=NOW - 2 * HOUR)
    assert doubts(receive(an_arrival(1, previous_hash=journal.GENESIS), backwards)) == [
        Reason.NONE,
        Reason.CLOCK_IMPLAUSIBLE,
    ]


def test_a_clock_that_ran_ahead_and_was_set_right_by_a_sync_holds_no_sale_after_it():
    ahead = an_arrival(1, previous_hash=journal.GENESIS, record_time=NOW + 20 * HOUR)
    told = an_arrival(2, record_time=NOW - HOUR, bundle_version=2)
    behind = an_arrival(3, record_time=NOW - 2 * HOUR, bundle_version=2)
    set_back_untold = an_arrival(2, record_time=NOW - HOUR)
    under_an_older_bundle = an_arrival(3, record_time=NOW - 2 * HOUR)

    assert doubts(receive(ahead, told, behind)) == [
        Reason.CLOCK_IMPLAUSIBLE,
        Reason.NONE,
        Reason.CLOCK_IMPLAUSIBLE,
    ]
    assert doubts(receive(ahead, set_back_untold))[1] is Reason.CLOCK_IMPLAUSIBLE
    assert doubts(receive(ahead, told, under_an_older_bundle))[2] is Reason.CLOCK_IMPLAUSIBLE
    # The one before may have arrived long before, or be a minute ahead and not itself in doubt.
    known = {1: [Known(a_hash(1), NOW - HOUR + timedelta(minutes=1), 1, None)]}
    assert doubts(receive(told, known=known)) == [Reason.NONE]


# Codes and rights.


def reason_of(call):
    with pytest.raises(Refusal) as raised:
        call()
    return raised.value.reason


def test_the_room_for_codes():
    right_ = Right(UUID(int=3))
    tens = [inr(10_00)] * 5
    live = [a_code(value=inr(10_00))] * 5

    codes.check_room(live, tens, right_, TERMS)
    codes.check_room([], [inr(500_00)] * 4, right_, TERMS)
    # Another currency's codes count, their worth does not.
    codes.check_room([a_code(value=Money(2_000_00, "KES"))], [inr(500_00)] * 4, right_, TERMS)
    assert reason_of(lambda: codes.check_room(live, [*tens, inr(10_00)], right_, TERMS)) == (
        "TOO_MANY_CODES"
    )
    dear = [a_code(value=inr(500_00))] * 4
    assert reason_of(lambda: codes.check_room(dear, [inr(10_00)], right_, TERMS)) == (
        "OFFLINE_CAP_EXCEEDED"
    )


def hear(found, level, reason="risk", *, at=NOW):
    return right.hear(found, Mark(level, reason), say_time=at, now=NOW)


def test_a_reduced_right_is_a_quarter_and_a_suspended_one_nothing():
    reduced = hear(Right(UUID(int=3)), Level.REDUCED)
    suspended = right.put(reduced, Source.ADMIN, Mark(Level.SUSPENDED, "asked"), now=NOW)

    assert (reduced.cap(2_000_00), suspended.cap(2_000_00)) == (500_00, 0)
    codes.check_room([], [inr(500_00)], reduced, TERMS)
    assert reason_of(lambda: codes.check_room([], [inr(500_00), inr(10_00)], reduced, TERMS)) == (
        "OFFLINE_CAP_EXCEEDED"
    )
    assert reason_of(lambda: codes.check_room([], [inr(10_00)], suspended, TERMS)) == (
        "OFFLINE_SUSPENDED"
    )


LEVELS = st.sampled_from(Level)


@given(LEVELS, LEVELS, LEVELS)
def test_the_lowest_right_that_anybody_has_set_counts(double, fraud, admin):
    found = Right(UUID(int=3))
    for source, level in ((Source.ADMIN, admin), (Source.DOUBLE_SPEND, double)):
        found = right.put(found, source, Mark(level, source.value), now=NOW)
    found = hear(found, fraud)

    assert found.level is max(double, fraud, admin)
    assert found.reason


def test_an_operators_normal_forgives_double_spends_and_not_what_fraud_says():
    found = Right(UUID(int=3))
    found = right.put(found, Source.DOUBLE_SPEND, Mark(Level.SUSPENDED, "twice"), now=NOW)
    found = hear(found, Level.REDUCED)

    found = right.put(found, Source.ADMIN, Mark(Level.NORMAL, "spoke to them"), now=NOW + HOUR)

    assert (found.level, found.reason) == (Level.REDUCED, "risk")
    assert found.update_time == NOW + HOUR


def test_setting_what_is_set_changes_nothing():
    mark = Mark(Level.REDUCED, "risk")
    once = right.put(Right(UUID(int=3)), Source.ADMIN, mark, now=NOW)

    assert right.put(once, Source.ADMIN, mark, now=NOW + HOUR) is once


def test_what_fraud_said_before_something_newer_changes_nothing():
    newer = hear(Right(UUID(int=3)), Level.NORMAL, at=NOW)

    assert hear(newer, Level.SUSPENDED, at=NOW - HOUR) is newer
    assert hear(newer, Level.SUSPENDED, at=NOW) is newer
    assert hear(newer, Level.SUSPENDED, at=NOW + HOUR).level is Level.SUSPENDED
    # The same again is newer, and no change.
    again = hear(newer, Level.NORMAL, at=NOW + HOUR)
    assert (again.fraud_time, again.update_time) == (NOW + HOUR, newer.update_time)


def test_revoking():
    revoked = codes.revoke(a_code(), now=NOW)

    assert (revoked.state, revoked.revoke_time) == (CodeState.REVOKED, NOW)
    assert revoked.can_be_spent
    assert codes.revoke(revoked, now=NOW + HOUR) is revoked
    for ended in (
        a_code(state=CodeState.SPENT),
        a_code(state=CodeState.EXPIRED, release=Release.DONE),
        replace(revoked, release=Release.DONE),
        a_code(release_time=NOW),
    ):
        assert reason_of(lambda ended=ended: codes.revoke(ended, now=NOW)) == "CODE_ENDED"


def test_two_signatures_prove_a_double_spend_and_one_uploaded_twice_does_not():
    def found(first, second):
        entries = (an_entry(spend_hash=first), an_entry(entry_id=UUID(int=20), spend_hash=second))
        return double_spend.found(a_code(), *entries, double_spend_id=UUID(int=30), now=NOW).proven

    assert found(a_hash(1), a_hash(2))
    assert not found(a_hash(1), a_hash(1))
    assert not found(a_hash(1), b"")
    assert not found(b"", b"")


# Keysets.


def keysets(*create_times):
    return [
        Keyset(generation, time.replace(hour=0), b"", time)
        for generation, time in enumerate(create_times)
    ]


def test_the_first_keyset_is_number_0_and_the_ninth_again():
    assert keyset.next_generation([], TERMS, now=NOW) == 0
    some = keysets(*(NOW - (140 - 14 * n) * DAY for n in range(8)))

    generation = keyset.next_generation(some, TERMS, now=NOW)

    assert generation == 8
    assert Keyset(generation, NOW, b"", NOW).number == 0


def test_a_number_is_used_again_only_when_its_codes_cost_nothing_any_more():
    some = keysets(*(NOW + n * HOUR for n in range(8)))
    # The last code of number 0 is issued when number 1 takes over; it lives 4 days, is uploaded for 4; and a day for
    # replicas that have not noticed.
    free_time = NOW + HOUR + 9 * DAY

    with pytest.raises(Refusal) as raised:
        keyset.next_generation(some, TERMS, now=free_time - timedelta(microseconds=1))

    assert raised.value.reason == "KEYSETS_IN_USE"
    assert raised.value.metadata["freeTime"] == free_time.isoformat()
    assert keyset.next_generation(some, TERMS, now=free_time) == 8


def test_terminals_are_given_the_keysets_whose_codes_may_still_be_spent():
    some = keysets(NOW - 20 * DAY, NOW - 6 * DAY, NOW - 4 * DAY)

    assert [each.generation for each in keyset.spendable(some, TERMS, now=NOW)] == [1, 2]
    assert keyset.is_old(some[0], TERMS, now=NOW)
    assert not keyset.is_old(some[1], TERMS, now=NOW)
