"""What each command on the ledger does and refuses. Pure: no store, no clock."""

from __future__ import annotations

import pytest

from services.payment.domain.book import (
    FundsMoved,
    Moved,
    PaymentAssessed,
    PaymentMoved,
    PaymentRefunded,
    Refunded,
    Task,
)
from services.payment.domain.commands import (
    RecordAssessment,
)
from services.payment.domain.ledger import (
    BALANCE_MINOR_UNITS_MAX,
    FUNDING_ID,
    PAYOUT_ID,
    SYSTEM_NAMES,
    TRANSFER_MINOR_UNITS_MAX,
    Bucket,
)
from services.payment.domain.payment import (
    Decision,
    FailureReason,
    Payment,
    Risk,
    State,
)
from tests.ledger_world import (
    ASHA,
    INT64_MAX,
    SHOP,
    World,
    laws_hold,
    open_tasks,
)


def test_a_settled_payment_tells_of_each_state_it_went_through_once():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 10))
    facts = len(world.book.facts)

    payment = world.do(world.payment(ASHA, SHOP, 10))

    told = [(fact.state, len(fact.transfers)) for fact in world.book.facts[facts:]]
    assert told == [(State.PENDING, 0), (State.PROCESSING, 0), (State.SUCCESS, 1)]
    assert payment.state is State.SUCCESS


@pytest.mark.parametrize(
    ("decision", "amount", "state", "reason"),
    [
        (Decision.ALLOW, 600_00, State.SUCCESS, FailureReason.NONE),
        (Decision.REVIEW, 1, State.FLAGGED, FailureReason.NONE),
        (Decision.DECLINE, 1, State.FAILED, FailureReason.RISK_DECLINED),
        (Decision.DEGRADED, 500_00, State.SUCCESS, FailureReason.NONE),
        (Decision.DEGRADED, 500_01, State.FLAGGED, FailureReason.NONE),
        (Decision.NONE, 1, State.FLAGGED, FailureReason.NONE),
        (Decision.ALLOW, 1_000_01, State.FAILED, FailureReason.INSUFFICIENT_FUNDS),
        (Decision.REVIEW, 1_000_01, State.FAILED, FailureReason.INSUFFICIENT_FUNDS),
        (Decision.DECLINE, 1_000_01, State.FAILED, FailureReason.RISK_DECLINED),
    ],
)
@pytest.mark.parametrize("wait", [True, False])
def test_what_the_fraud_check_says_decides_and_no_word_is_never_a_pass(
    decision, amount, state, reason, wait
):
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 1_000_00))

    payment = world.do(world.payment(ASHA, SHOP, amount, decision=decision, wait=wait))
    if not wait:
        assert payment.state is State.PENDING
        payment = world.do(world.settle(payment, decision))

    assert (payment.state, payment.failure_reason) == (state, reason)
    assert payment.risk.decision is decision
    paid, held = amount * (state is State.SUCCESS), amount * (state is State.FLAGGED)
    assert world.balance(ASHA) == 1_000_00 - paid - held
    assert world.balance(ASHA, Bucket.HELD) == held
    assert world.balance(SHOP) == paid
    unseen = decision is Decision.DEGRADED and state is State.SUCCESS
    assert ((payment.payment_id, Task.ASSESS) in open_tasks(world.book)) == unseen


@pytest.mark.parametrize("approve", [True, False])
def test_a_hold_is_resolved_exactly_once(approve):
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 10))
    payment = world.do(world.payment(ASHA, SHOP, 10, decision=Decision.REVIEW))

    resolved = world.do(world.resolve(payment, approve=approve))

    assert resolved.payment.state is (State.SUCCESS if approve else State.FAILED)
    assert (world.balance(ASHA), world.balance(SHOP)) == ((0, 10) if approve else (10, 0))
    assert world.balance(ASHA, Bucket.HELD) == 0
    assert world.refused(world.resolve(payment, approve=not approve)) == "PAYMENT_NOT_FLAGGED"
    assert world.refused(world.resolve(payment, approve=approve)) == "PAYMENT_NOT_FLAGGED"


def test_settling_a_pending_payment_twice_pays_once():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 20))
    payment = world.do(world.payment(ASHA, SHOP, 10, wait=False))

    first = world.do(world.settle(payment))
    facts = len(world.book.facts)
    second = world.do(world.settle(payment, Decision.DECLINE))

    assert first == second
    assert len(world.book.facts) == facts
    assert (world.balance(ASHA), world.balance(SHOP)) == (10, 10)


@pytest.mark.parametrize(
    ("suspended", "reason"),
    [(ASHA, FailureReason.PAYER_NOT_ACTIVE), (SHOP, FailureReason.VENDOR_NOT_ACTIVE)],
)
def test_a_pending_payment_fails_when_a_side_is_suspended_before_it_settles(suspended, reason):
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 10))
    payment = world.do(world.payment(ASHA, SHOP, 10, wait=False))
    world.opened(suspended, active=False, version=2)

    payment = world.do(world.settle(payment))

    assert (payment.state, payment.failure_reason) == (State.FAILED, reason)
    assert world.balance(ASHA) == 10


def test_the_smallest_payment_moves_one_minor_unit():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 1))

    payment = world.do(world.payment(ASHA, SHOP, 1))

    assert payment.state is State.SUCCESS
    assert (world.balance(ASHA), world.balance(SHOP)) == (0, 1)


def test_an_account_may_be_filled_to_its_limit_and_not_one_unit_more():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(SHOP, BALANCE_MINOR_UNITS_MAX - 10))
    world.do(world.top_up(ASHA, BALANCE_MINOR_UNITS_MAX))

    assert world.refused(world.payment(ASHA, SHOP, 11)) == "BALANCE_OVER_LIMIT"
    assert world.refused(world.top_up(SHOP, 11)) == "BALANCE_OVER_LIMIT"
    assert world.refused(world.top_up(ASHA, 1)) == "BALANCE_OVER_LIMIT"
    assert world.do(world.payment(ASHA, SHOP, 10)).state is State.SUCCESS

    assert world.balance(SHOP) == BALANCE_MINOR_UNITS_MAX
    laws_hold(world.book)


def test_a_refund_and_an_approved_hold_respect_the_limit_of_who_receives():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 20))
    paid = world.do(world.payment(ASHA, SHOP, 10))
    held = world.do(world.payment(ASHA, SHOP, 10, decision=Decision.REVIEW))
    world.do(world.top_up(ASHA, BALANCE_MINOR_UNITS_MAX - 9))
    world.do(world.top_up(SHOP, BALANCE_MINOR_UNITS_MAX - 19))

    assert world.refused(world.refund(paid, 10)) == "BALANCE_OVER_LIMIT"
    assert world.refused(world.resolve(held)) == "BALANCE_OVER_LIMIT"
    assert world.do(world.refund(paid, 9)).payment.refunded == 9
    assert world.do(world.resolve(held)).payment.state is State.SUCCESS


@pytest.mark.parametrize("amount", [1, TRANSFER_MINOR_UNITS_MAX, INT64_MAX])
def test_nothing_can_be_taken_out_of_an_empty_account_however_much_is_asked(amount):
    world = World().opened(ASHA, SHOP)

    assert world.refused(world.payout(ASHA, amount)) == "INSUFFICIENT_FUNDS"
    assert world.refused(world.to_offline(ASHA, amount)) == "INSUFFICIENT_FUNDS"
    assert world.refused(world.to_online(ASHA, amount)) == "INSUFFICIENT_FUNDS"


def test_all_of_an_account_can_be_taken_out_and_comes_from_the_payout_account():
    world = World().opened(ASHA)
    world.do(world.top_up(ASHA, 7))

    moved = world.do(world.payout(ASHA, 7))

    assert moved.wallet.balances == [0, 0, 0, 0]
    assert (world.balance(FUNDING_ID), world.balance(PAYOUT_ID)) == (-7, 7)


def test_the_offline_balance_may_reach_its_cap_and_not_one_unit_more():
    world = World().opened(ASHA)
    world.do(world.top_up(ASHA, 5_000_00))
    world.do(world.to_offline(ASHA, 1_999_99))

    assert world.refused(world.to_offline(ASHA, 2)) == "OFFLINE_CAP_EXCEEDED"
    world.do(world.to_offline(ASHA, 1))

    assert world.balance(ASHA, Bucket.OFFLINE) == 2_000_00
    world.do(world.to_online(ASHA, 2_000_00))
    assert world.balance(ASHA) == 5_000_00


def test_refunds_of_a_payment_add_up_to_its_amount_and_not_one_unit_more():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 10))
    payment = world.do(world.payment(ASHA, SHOP, 10))

    assert world.refused(world.refund(payment, 11)) == "REFUND_EXCEEDS_PAYMENT"
    world.do(world.refund(payment, 4))
    assert world.refused(world.refund(payment, 7)) == "REFUND_EXCEEDS_PAYMENT"
    last = world.do(world.refund(payment, 6))

    assert last.payment.refunded == 10
    assert last.payment.state is State.SUCCESS
    assert world.refused(world.refund(payment, 1)) == "REFUND_EXCEEDS_PAYMENT"


def test_a_vendor_who_spent_the_money_cannot_refund_it():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 10))
    payment = world.do(world.payment(ASHA, SHOP, 10))
    world.do(world.payout(SHOP, 1))

    assert world.refused(world.refund(payment, 10)) == "VENDOR_FUNDS_INSUFFICIENT"


def test_the_answer_to_a_resolved_hold_stays_what_it_was_when_the_payment_is_refunded_later():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 10))
    payment = world.do(world.payment(ASHA, SHOP, 10, decision=Decision.REVIEW))
    key = b"k" * 32
    first = world.do(world.resolve(payment, key=key))
    world.do(world.refund(payment, 10))

    assert world.do(world.resolve(payment, key=key)) == first


@pytest.mark.parametrize("system_id", sorted(SYSTEM_NAMES, key=int))
@pytest.mark.parametrize("kind", ["top_up", "payout", "to_offline", "to_online"])
def test_the_systems_own_accounts_are_nobodys_wallet(system_id, kind):
    world = World().opened(ASHA)
    world.do(world.top_up(ASHA, 10))
    world.do(world.payout(ASHA, 10))

    assert world.refused(getattr(world, kind)(system_id, 1)) == "WALLET_NOT_FOUND"


def test_what_is_known_of_an_owner_is_never_undone_by_something_older():
    world = World().opened(ASHA, active=False, version=5)
    facts = len(world.book.facts)

    world.opened(ASHA, active=True, version=4)
    world.opened(ASHA, active=True, version=5)

    assert len(world.book.facts) == facts
    assert world.refused(world.top_up(ASHA, 1)) == "WALLET_NOT_ACTIVE"


def test_a_new_version_of_an_owner_that_changes_no_right_is_no_news():
    world = World().opened(ASHA, version=1)
    facts = len(world.book.facts)

    world.opened(ASHA, version=2)

    assert len(world.book.facts) == facts
    world.opened(ASHA, active=False, version=1)  # and yet the version counts
    world.do(world.top_up(ASHA, 1))


def test_a_late_assessment_is_recorded_once_and_leaves_the_payment_as_it_was_settled():
    world = World().opened(ASHA, SHOP)
    world.do(world.top_up(ASHA, 10))
    payment = world.do(world.payment(ASHA, SHOP, 10, decision=Decision.DEGRADED))
    late = Risk(Decision.DECLINE, 90, ("SIGN",))
    command = RecordAssessment(payment.payment_id, payment.payer, late)

    world.do(command)
    world.do(command)

    told = [fact for fact in world.book.facts if isinstance(fact, PaymentAssessed)]
    assert [fact.risk for fact in told] == [late]
    assert world.book.payments[payment.payment_id] == payment
    assert open_tasks(world.book) == set()


def test_every_kind_of_answer_and_fact_is_about_what_moved():
    world = World().opened(ASHA, SHOP)
    moved = world.do(world.top_up(ASHA, 10))
    payment = world.do(world.payment(ASHA, SHOP, 10))
    refunded = world.do(world.refund(payment, 3))

    assert isinstance(moved, Moved)
    assert isinstance(payment, Payment)
    assert isinstance(refunded, Refunded)
    told = [type(fact) for fact in world.book.facts if not hasattr(fact, "active")]
    assert told == [FundsMoved, PaymentMoved, PaymentMoved, PaymentMoved, PaymentRefunded]
