"""The ledger's laws (design, section 3) after any sequence of commands. Pure: no store, no clock."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from uuid_utils import UUID

from services.payment import events
from services.payment.domain.book import (
    PaymentMoved,
    SettledOffline,
    Task,
)
from services.payment.domain.commands import RecordAssessment
from services.payment.domain.ledger import (
    BALANCE_MINOR_UNITS_MAX,
    SYSTEM_NAMES,
    TRANSFER_MINOR_UNITS_MAX,
    Bucket,
)
from services.payment.domain.offline_commands import SettleOffline
from services.payment.domain.payment import (
    MOVES,
    Decision,
    Payment,
    Risk,
    State,
)
from services.payment.domain.reservation import ReservationState
from services.payment.domain.wallet_commands import SetOwner
from services.refusal import Refusal
from tests.ledger_world import (
    ASHA,
    INT64_MAX,
    NOT_KEPT,
    OWNERS,
    POLICY,
    SHOP,
    STALL,
    World,
    copied,
    laws_hold,
    open_tasks,
)

amounts = st.sampled_from(
    [
        *(1, 2, 3, 10, 99, 100, 499_99, 500_00, 500_01, 1_999_99, 2_000_00, 2_000_01),
        *(TRANSFER_MINOR_UNITS_MAX, BALANCE_MINOR_UNITS_MAX, INT64_MAX),
    ]
)
owners = st.sampled_from(OWNERS)
currencies = st.sampled_from(["INR", "INR", "INR", "KES"])
decisions = st.sampled_from([Decision.ALLOW, Decision.REVIEW, Decision.DECLINE, Decision.DEGRADED])
# Mostly new ones; the others are few, so that they meet.
keys = st.sampled_from([None] * 4 + [bytes([number]) * 32 for number in range(3)])
some = st.integers(0, 10**6)


@st.composite
def steps(draw):
    """(What to do, with what): a command is made of it when its turn comes, on what is there then."""
    kind = draw(
        st.sampled_from(
            ["owner", "top_up", "payout", "to_offline", "to_online", "again", "again"]
            + ["payment", "payment", "settle", "resolve", "refund", "assess"] * 2
            + ["reserve", "reserve", "spend", "spend", "spend", "release"]
        )
    )
    if kind == "owner":
        return kind, {
            "owner_id": draw(owners),
            "active": draw(st.sampled_from([True, True, True, False])),
            "version": draw(st.integers(1, 9)),
        }
    if kind == "again":
        return kind, {"which": draw(some)}
    if kind == "payment":
        return kind, {
            "payer": draw(owners),
            "vendor": draw(st.sampled_from([SHOP, SHOP, STALL, ASHA])),
            "amount": draw(amounts),
            "decision": draw(decisions),
            "wait": draw(st.booleans()),
            "currency": draw(currencies),
            "key": draw(keys),
        }
    if kind in {"settle", "assess"}:
        return kind, {"which": draw(some), "decision": draw(decisions)}
    if kind == "reserve":
        return kind, {
            "owner": draw(owners),
            "amounts": draw(
                st.lists(st.sampled_from([1, 2, 99, 100, 500_00]), min_size=1, max_size=3)
            ),
            "key": draw(keys),
        }
    if kind == "spend":
        return kind, {
            "which": draw(some),
            "vendor": draw(st.sampled_from([SHOP, SHOP, STALL, ASHA])),
            "amount": draw(st.sampled_from([1, 1, 2, 98, 100, 499_99, 500_01])),
            "decision": draw(decisions),
            "hold_reason": draw(st.sampled_from(["", "", "LATE_UPLOAD"])),
            "payment_id": draw(st.sampled_from([None] * 3 + [UUID(int=5), UUID(int=6)])),
        }
    if kind == "release":
        return kind, {"which": draw(some)}
    if kind == "resolve":
        return kind, {"which": draw(some), "approve": draw(st.booleans()), "key": draw(keys)}
    if kind == "refund":
        return kind, {"which": draw(some), "amount": draw(amounts), "key": draw(keys)}
    return kind, {
        "owner": draw(owners),
        "amount": draw(amounts),
        "currency": draw(currencies),
        "key": draw(keys),
    }


FITS = {"settle": State.PENDING, "resolve": State.FLAGGED, "refund": State.SUCCESS}


def command_of(world, kind, given_):
    """The command of a step; None when there is nothing it could be about."""
    with_ = dict(given_)
    if kind == "owner":
        vendor = with_["owner_id"] in (SHOP, STALL)
        return SetOwner(**with_, is_vendor=vendor, currencies=POLICY.currencies)
    if kind in {"top_up", "payout", "to_offline", "to_online"}:
        return getattr(world, kind)(**with_)
    if kind == "payment":
        return None if with_["payer"] == with_["vendor"] else world.payment(**with_)
    if kind == "reserve":
        return world.reserve(with_.pop("owner"), *with_.pop("amounts"), **with_)
    if kind in {"spend", "release"}:
        return reservation_command(world, kind, with_)
    found = list(world.book.payments.values())
    if kind == "assess":  # only what was settled unassessed ever is
        found = [each for each in found if (each.payment_id, Task.ASSESS) in open_tasks(world.book)]
    which = with_.pop("which")
    if which % 4:  # mostly one that it can be done to
        found = [each for each in found if each.state is FITS.get(kind, each.state)] or found
    if not found:
        return None
    payment = found[which % len(found)]
    if kind == "assess":
        risk = Risk(with_["decision"], 50, ("SIGN",))
        return RecordAssessment(payment.payment_id, payment.payer, risk)
    return getattr(world, kind)(payment, **with_)


def reservation_command(world, kind, with_):
    which, found = with_.pop("which"), list(world.book.reservations.values())
    if which % 4:
        found = [each for each in found if each.state is ReservationState.LIVE] or found
    return getattr(world, kind)(found[which % len(found)], **with_) if found else None


def what_is_over_stays_over(before, after):
    """A reservation ends once."""
    for reservation_id, reservation in before.items():
        if reservation.state is not ReservationState.LIVE:
            assert after[reservation_id] == reservation


def states_follow_from_facts(book, states, facts):
    """Every new fact about a payment is one move; folded, the facts say where each payment stands."""
    for fact in facts:
        if isinstance(fact, PaymentMoved):
            payment_id = fact.payment.payment_id
            assert (states.get(payment_id), fact.state) in MOVES
            assert fact.payment.state is fact.state
            states[payment_id] = fact.state
    assert states == {key: payment.state for key, payment in book.payments.items()}


def asked(command):
    """(What makes a command happen once, what is asked by it); None where its effect says so itself."""
    if isinstance(command, SettleOffline):  # its payment is all that is kept of it
        said = {name: value for name, value in command._asdict().items() if name not in NOT_KEPT}
        return command.payment_id, said
    return command.request and (command.request.key, command.request.body_hash)


def the_first_answer(command, earlier, outcome, book):
    """4. A replay gets the first answer; a payment's is brought up to date."""
    if isinstance(earlier, Payment):
        assert outcome == book.payments[earlier.payment_id]
    elif isinstance(earlier, SettledOffline):
        payment_id = earlier.payment.payment_id
        assert outcome == replace(earlier, payment=book.payments[payment_id])
    else:
        assert outcome == earlier


@settings(max_examples=80, deadline=None)
@given(st.lists(steps(), min_size=25, max_size=50))
def test_the_laws_hold_after_every_command_whatever_came_before(taken):
    world = World().opened(*OWNERS)
    for owner in OWNERS:
        world.do(world.top_up(owner, 3_000_00))
        world.do(world.to_offline(owner, 1_000_00))
    book = world.book
    states, answers, done = {}, {}, []

    for kind, given_ in taken:
        if kind == "again":
            command = done[given_["which"] % len(done)] if done else None
        else:
            command = command_of(world, kind, given_)
        if command is None:
            continue
        done.append(command)
        before, facts, transfers = copied(book), len(book.facts), len(book.ledger.transfers)
        try:
            outcome = world.do(command)
        except Refusal:
            assert book == before  # a refused command changes nothing
            continue
        states_follow_from_facts(book, states, book.facts[facts:])
        laws_hold(book)
        what_is_over_stays_over(before.reservations, book.reservations)
        if once := asked(command):
            key, body = once
            known = answers.get(key)
            if known is None:
                answers[key] = (body, copy.deepcopy(outcome))
            else:
                assert known[0] == body  # else REQUEST_ID_REUSED, or PAYMENT_EXISTS
                the_first_answer(command, known[1], outcome, book)
                assert (len(book.facts), len(book.ledger.transfers)) == (facts, transfers)

    the_log_rebuilds(book)


def the_log_rebuilds(book):
    """7. Folding the events, and nothing else, gives every balance, state and refund."""
    made = (UUID(int=number) for number in range(10**6, 10**7))
    balances, states, refunded = Counter(), {}, Counter()
    state_of = {
        "payment_created": State.PENDING,
        "payment_processing": State.PROCESSING,
        "payment_succeeded": State.SUCCESS,
        "payment_failed": State.FAILED,
        "payment_flagged": State.FLAGGED,
    }
    for event in events.events([(fact, "") for fact in book.facts], new_id=lambda: next(made)):
        fact = event.WhichOneof("fact")
        moved = []
        if fact in {"payment_refunded", "funds_moved"}:
            moved = [getattr(event, fact).transfer]
        elif fact in {"payment_succeeded", "payment_failed", "payment_flagged"}:
            moved = getattr(event, fact).transfers
        for transfer in moved:
            balances[transfer.debit_account] -= transfer.amount.minor_units
            balances[transfer.credit_account] += transfer.amount.minor_units
            if fact == "payment_refunded":
                refunded[event.subject] += transfer.amount.minor_units
        if fact in state_of:
            states[event.subject] = state_of[fact]
    for (owner_id, currency), wallet in book.ledger.wallets.items():
        for bucket in Bucket:
            name = f"users/{owner_id}/wallets/{currency}/{bucket.name.lower()}"
            if owner_id in SYSTEM_NAMES:
                name = f"system/{SYSTEM_NAMES[owner_id]}/{currency}"
                if bucket is not Bucket.ONLINE:
                    continue
            assert wallet.balance(bucket) == balances[name]
    for payment in book.payments.values():
        name = f"payments/{payment.payment_id}"
        assert (states[name], refunded[name]) == (payment.state, payment.refunded)
