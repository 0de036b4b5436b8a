"""What becomes of money behind offline codes, command by command. Pure: no store, no clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from uuid_utils import UUID

from services.money import Money
from services.payment.domain.book import FundsMoved, PaymentMoved, Task
from services.payment.domain.ledger import (
    BALANCE_MINOR_UNITS_MAX,
    FUNDING_ID,
    Bucket,
    Purpose,
    WalletKey,
)
from services.payment.domain.offline_commands import SettleOffline
from services.payment.domain.payment import (
    Channel,
    Decision,
    FailureReason,
    Position,
    Risk,
    Shown,
    State,
)
from services.payment.domain.reservation import ReservationState
from tests.ledger_world import (
    ASHA,
    BABU,
    NOT_KEPT,
    NOW,
    SHOP,
    STALL,
    World,
    copied,
    laws_hold,
    open_tasks,
)

OTHER = UUID(int=8)


def a_world(*amounts):
    """A world in which Asha has live reservations, and those."""
    world = World().opened(ASHA, BABU, SHOP, STALL)
    return world, world.reserved(ASHA, *amounts)


def test_a_code_spent_whole_moves_its_money_once():
    world, (code,) = a_world(100)
    facts = len(world.book.facts)

    settled = world.do(world.spend(code, SHOP, 100))

    assert settled.returned == 0
    assert world.balances(ASHA) == (0, 0, 0, 0)
    assert world.balance(SHOP) == 100
    told = [(fact.state, len(fact.transfers)) for fact in world.book.facts[facts:]]
    assert told == [(State.PENDING, 0), (State.PROCESSING, 0), (State.SUCCESS, 1)]
    laws_hold(world.book)


def test_a_code_spent_in_part_returns_the_rest_in_the_same_step():
    world, (code,) = a_world(100)

    settled = world.do(world.spend(code, SHOP, 1))

    assert settled.returned == 99
    assert world.balances(ASHA) == (0, 99, 0, 0)
    last = world.book.facts[-1]
    assert isinstance(last, PaymentMoved)
    assert [transfer.purpose for transfer in last.transfers] == [Purpose.PAYMENT, Purpose.RELEASE]
    assert world.book.reservations[code.reservation_id] == code._replace(
        state=ReservationState.SETTLED,
        payment_id=settled.payment.payment_id,
        update_time=world.now,
    )


def test_an_offline_payment_keeps_when_and_where_it_was_spent():
    world, (code,) = a_world(100)

    payment = world.do(world.spend(code, SHOP, 40)).payment

    assert payment.channel is Channel.OFFLINE
    assert payment.occur_time == NOW - timedelta(days=2)
    assert payment.create_time == world.now
    assert payment.reservation_id == code.reservation_id
    assert payment.request_id == payment.payment_id


@pytest.mark.parametrize(
    ("decision", "amount", "state"),
    [
        (Decision.ALLOW, 600_00, State.SUCCESS),
        (Decision.REVIEW, 1, State.FLAGGED),
        (Decision.DECLINE, 1, State.FLAGGED),
        (Decision.DEGRADED, 500_00, State.SUCCESS),
        (Decision.DEGRADED, 500_01, State.FLAGGED),
        (Decision.NONE, 1, State.FLAGGED),
    ],
)
def test_no_verdict_refuses_what_is_spent_and_no_word_is_never_a_pass(decision, amount, state):
    world, (code,) = a_world(700_00)

    payment = world.do(world.spend(code, SHOP, amount, decision=decision)).payment

    assert (payment.state, payment.failure_reason) == (state, FailureReason.NONE)
    assert payment.risk == Risk(decision, 50, ("SIGN",))
    held = amount * (state is State.FLAGGED)
    assert world.balances(ASHA) == (0, 700_00 - amount, 0, held)
    assert world.balance(SHOP) == amount - held
    unseen = decision is Decision.DEGRADED and state is State.SUCCESS
    assert ((payment.payment_id, Task.ASSESS) in open_tasks(world.book)) == unseen
    laws_hold(world.book)


@pytest.mark.parametrize(
    ("decision", "suspended", "hold_reason", "expected"),
    [
        (Decision.ALLOW, False, "LATE", Risk(Decision.REVIEW, 50, ("LATE", "SIGN"))),
        (Decision.ALLOW, True, "", Risk(Decision.REVIEW, 50, ("VENDOR_NOT_ACTIVE", "SIGN"))),
        (Decision.REVIEW, False, "SIGN", Risk(Decision.REVIEW, 50, ("SIGN",))),
        (Decision.DECLINE, False, "LATE", Risk(Decision.DECLINE, 50, ("LATE", "SIGN"))),
        (
            Decision.DEGRADED,
            True,
            "LATE",
            Risk(Decision.REVIEW, 50, ("LATE", "VENDOR_NOT_ACTIVE", "SIGN")),
        ),
    ],
)
def test_what_else_holds_the_money_is_the_first_of_its_reasons(
    decision, suspended, hold_reason, expected
):
    world, (code,) = a_world(100)
    world.opened(SHOP, active=not suspended, version=2)

    command = world.spend(code, SHOP, 100, decision=decision, hold_reason=hold_reason)
    payment = world.do(command).payment

    assert (payment.state, payment.risk) == (State.FLAGGED, expected)
    assert open_tasks(world.book) == set()


@pytest.mark.parametrize("approve", [True, False])
def test_held_money_goes_to_the_vendor_or_back_to_where_it_came_from(approve):
    world, (code,) = a_world(100)
    payment = world.do(world.spend(code, SHOP, 60, decision=Decision.REVIEW)).payment

    resolved = world.do(world.resolve(payment, approve=approve)).payment

    assert world.balances(ASHA) == ((0, 40, 0, 0) if approve else (0, 100, 0, 0))
    assert world.balance(SHOP) == (60 if approve else 0)
    reason = FailureReason.NONE if approve else FailureReason.REVIEW_REJECTED
    assert resolved.failure_reason is reason
    assert world.refused(world.spend(code, SHOP, 60)) == "RESERVATION_SETTLED"
    assert world.do(world.release(code)).state is ReservationState.SETTLED
    laws_hold(world.book)


def test_a_refund_of_an_offline_payment_goes_to_the_online_balance():
    world, (code,) = a_world(100)
    payment = world.do(world.spend(code, SHOP, 60)).payment

    world.do(world.refund(payment, 50))

    assert world.balances(ASHA) == (50, 40, 0, 0)


def test_a_suspended_payers_codes_still_pay_and_still_come_back():
    world, (spent, unspent) = a_world(100, 30)
    world.opened(ASHA, active=False, version=2)

    assert world.do(world.spend(spent, SHOP, 100)).payment.state is State.SUCCESS
    assert world.do(world.release(unspent)).state is ReservationState.RELEASED
    assert world.balances(ASHA) == (0, 30, 0, 0)
    assert world.refused(world.reserve(ASHA, 1)) == "WALLET_NOT_ACTIVE"


def test_of_settling_and_releasing_the_first_wins():
    world, (one, two) = a_world(100, 30)

    world.do(world.release(one))
    world.do(world.spend(two, SHOP, 30))
    facts = len(world.book.facts)

    assert world.refused(world.spend(one, SHOP, 100)) == "RESERVATION_RELEASED"
    assert world.do(world.release(one)).state is ReservationState.RELEASED
    assert world.do(world.release(two)).state is ReservationState.SETTLED
    assert len(world.book.facts) == facts
    assert world.balances(ASHA) == (0, 100, 0, 0)


def test_a_replay_answers_as_it_stands_and_another_body_is_refused():
    world, (one, two) = a_world(100, 30)
    command = world.spend(one, SHOP, 60, decision=Decision.REVIEW)
    first = world.do(command)
    resolved = world.do(world.resolve(first.payment)).payment

    again = world.do(command._replace(risk=Risk(Decision.DECLINE)))

    assert (again.payment, again.returned) == (resolved, 40)
    assert world.refused(command._replace(reservation_id=two.reservation_id)) == "PAYMENT_EXISTS"


ASKED = {
    "reservation_id": OTHER,
    "vendor_id": STALL,
    "terminal_id": OTHER,
    "site_id": OTHER,
    "amount": Money(59, "INR"),
    "spend_time": NOW,
    "position": Position(12.5, 77.5, 8.0, mocked=False),
    "reference": "till 4",
}
NOT_ASKED = {
    "transfer_id": OTHER,
    "release_id": OTHER,
    "hold_reason": "LATE_UPLOAD",
    "shown": Shown(timedelta(hours=1), "phone 7"),
    "risk": Risk(Decision.REVIEW),
}


def test_what_is_on_record_of_an_item_may_not_change_and_what_is_not_may():
    names = set(SettleOffline._fields)
    assert names == {"payment_id", "payer", "request"} | ASKED.keys() | NOT_ASKED.keys()
    assert NOT_ASKED.keys() | {"request"} == NOT_KEPT
    world, (code, other) = a_world(100, 100)
    world.book.reservations[OTHER] = other._replace(reservation_id=OTHER)
    command = world.spend(code, SHOP, 60)
    first = world.do(command)

    for name, value in ASKED.items():
        assert world.refused(command._replace(**{name: value})) == "PAYMENT_EXISTS", name
    kes = command._replace(payer=WalletKey(ASHA, "KES"), amount=Money(60, "KES"))
    assert world.refused(kes) == "PAYMENT_EXISTS"
    babu = command._replace(payer=WalletKey(BABU, "INR"))
    assert world.refused(babu) == "RESERVATION_NOT_FOUND"
    for name, value in NOT_ASKED.items():
        before = copied(world.book)
        assert world.do(command._replace(**{name: value})) == first, name
        assert world.book == before


def test_the_name_of_an_online_payment_is_taken():
    world, (code,) = a_world(100)
    world.do(world.top_up(ASHA, 5))
    online = world.do(world.payment(ASHA, SHOP, 5))

    spend = world.spend(code, SHOP, 5, payment_id=online.payment_id)

    assert world.refused(spend) == "PAYMENT_EXISTS"


def test_items_are_refused_in_the_contracts_order():
    world, (code, spent, released) = a_world(100, 100, 100)
    done = world.spend(spent, SHOP, 100)
    world.do(done)
    world.do(world.release(released))
    world.do(world.top_up(SHOP, BALANCE_MINOR_UNITS_MAX - 199))
    over, kes, nobody = 101, {"currency": "KES"}, FUNDING_ID
    unknown = code._replace(reservation_id=OTHER)
    babu = kes | {"payer": BABU, "payment_id": done.payment_id}
    expected = [
        ("RESERVATION_NOT_FOUND", world.spend(unknown, ASHA, over, **kes)),
        ("RESERVATION_NOT_FOUND", world.spend(spent, ASHA, over, **babu)),
        ("PAYMENT_EXISTS", world.spend(spent, ASHA, over, payment_id=done.payment_id, **kes)),
        ("RESERVATION_SETTLED", world.spend(spent, ASHA, over, **kes)),
        ("RESERVATION_RELEASED", world.spend(released, ASHA, over, **kes)),
        ("CURRENCY_MISMATCH", world.spend(code, ASHA, over, **kes)),
        ("AMOUNT_OVER_RESERVATION", world.spend(code, ASHA, over)),
        ("SELF_PAYMENT", world.spend(code, ASHA, 100)),
        ("VENDOR_NOT_FOUND", world.spend(code, BABU, 100)),
        ("VENDOR_NOT_FOUND", world.spend(code, nobody, 100)),
        ("BALANCE_OVER_LIMIT", world.spend(code, SHOP, 100)),
    ]

    for reason, command in expected:
        assert world.refused(command) == reason

    assert world.do(world.spend(code, SHOP, 99)).payment.state is State.SUCCESS


def test_reservations_are_made_all_or_none_and_once():
    world = World().opened(ASHA)
    world.do(world.top_up(ASHA, 100))
    world.do(world.to_offline(ASHA, 100))

    assert world.refused(world.reserve(ASHA, 60, 41)) == "INSUFFICIENT_FUNDS"
    command = world.reserve(ASHA, 60, 40)
    first = world.do(command)
    facts = len(world.book.facts)

    assert world.do(command) == first
    assert len(world.book.facts) == facts
    assert isinstance(world.book.facts[-1], FundsMoved)
    assert world.balances(ASHA) == (0, 0, 100, 0)
    again = replace(command, request=world.once("another"))
    assert world.refused(again) == "RESERVATION_EXISTS"
    assert world.refused(world.reserve(FUNDING_ID, 1)) == "WALLET_NOT_FOUND"
    assert world.refused(world.reserve(BABU, 1)) == "WALLET_NOT_FOUND"


def test_what_is_reserved_counts_towards_the_offline_cap_and_what_is_held_does_not():
    world, (code,) = a_world(1_999_00)
    world.do(world.top_up(ASHA, 5_000_00))

    assert world.refused(world.to_offline(ASHA, 1_01)) == "OFFLINE_CAP_EXCEEDED"
    world.do(world.spend(code, SHOP, 1_999_00, decision=Decision.REVIEW))
    world.do(world.to_offline(ASHA, 2_000_00))

    assert world.balance(ASHA, Bucket.OFFLINE) == 2_000_00
