"""The ledger's laws (design, section 3) after any sequence of commands. Pure: no store, no clock."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.money import Money
from services.payment import events
from services.payment.domain.book import (
    Book,
    FundsMoved,
    Moved,
    PaymentAssessed,
    PaymentMoved,
    PaymentRefunded,
    Policy,
    Refunded,
    Request,
    Task,
)
from services.payment.domain.commands import (
    CreatePayment,
    MoveFunds,
    RecordAssessment,
    Refund,
    ResolveHold,
    SetOwner,
    SettlePending,
)
from services.payment.domain.ledger import (
    BALANCE_MINOR_UNITS_MAX,
    FUNDING_ID,
    PAYOUT_ID,
    SYSTEM_NAMES,
    TRANSFER_MINOR_UNITS_MAX,
    Account,
    Bucket,
    Ledger,
    Purpose,
    WalletKey,
)
from services.payment.domain.payment import MOVES, Decision, FailureReason, Payment, Risk, State
from services.refusal import Refusal

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = Policy(frozenset({"INR", "KES"}), degraded_floor=500_00, offline_cap=2_000_00)
INT64_MAX = 2**63 - 1

ASHA, BABU, SHOP, STALL = (UUID(int=number) for number in range(101, 105))
OWNERS = (ASHA, BABU, SHOP, STALL)
ADMIN = "users/admin"


class World:
    """One book, and commands on it with ids made in order.

    Attributes:
        book: What the commands have made of an empty ledger.
        now: A second later with every command.
    """

    def __init__(self):
        self.book = Book(Ledger({}), {}, {}, POLICY)
        self.now = NOW
        self._ids = 1_000

    def new_id(self):
        self._ids += 1
        return UUID(int=self._ids)

    def do(self, command):
        """Decide a command as the group does."""
        self.now += timedelta(seconds=1)
        return command.decide(self.book, self.now)

    def refused(self, command):
        """The reason a command is refused with; it must leave the book as it was."""
        before = copied(self.book)
        with pytest.raises(Refusal) as raised:
            self.do(command)
        assert self.book == before
        return raised.value.reason

    def opened(self, *owners, active=True, version=1):
        for owner in owners:
            vendor = owner in (SHOP, STALL)
            self.do(SetOwner(owner, active, vendor, version, POLICY.currencies))
        return self

    def once(self, body="", key=None):
        key = self.new_id().bytes + bytes(16) if key is None else key
        return Request(key, hashlib.sha256(repr(body).encode()).digest(), str(UUID(int=1)))

    def top_up(self, owner, amount, **changes):
        return self.funds(owner, amount, Purpose.TOP_UP, None, Bucket.ONLINE, **changes)

    def payout(self, owner, amount, **changes):
        return self.funds(owner, amount, Purpose.PAYOUT, Bucket.ONLINE, None, **changes)

    def to_offline(self, owner, amount, **changes):
        return self.funds(
            owner, amount, Purpose.MOVE_BALANCE, Bucket.ONLINE, Bucket.OFFLINE, **changes
        )

    def to_online(self, owner, amount, **changes):
        return self.funds(
            owner, amount, Purpose.MOVE_BALANCE, Bucket.OFFLINE, Bucket.ONLINE, **changes
        )

    def funds(self, owner, amount, purpose, source, target, *, currency="INR", key=None):
        body = (owner, amount, purpose, source, target, currency)
        return MoveFunds(
            request=self.once(body, key),
            transfer_id=self.new_id(),
            wallet=WalletKey(owner, currency),
            purpose=purpose,
            source=source,
            target=target,
            amount=Money(amount, currency),
            reference="",
            actor=ADMIN,
        )

    def payment(
        self, payer, vendor, amount, *, decision=Decision.ALLOW, wait=True, currency="INR", key=None
    ):
        return CreatePayment(
            request=self.once((payer, vendor, amount, currency), key),
            payment_id=self.new_id(),
            transfer_id=self.new_id(),
            payer=WalletKey(payer, currency),
            vendor_id=vendor,
            site_id=None,
            amount=amount,
            position=None,
            reference="",
            wait=wait,
            risk=Risk(decision, 50, ("SIGN",)),
        )

    def settle(self, payment, decision=Decision.ALLOW):
        risk = Risk(decision, 50, ("SIGN",))
        return SettlePending(payment.payment_id, self.new_id(), payment.payer, payment.vendor, risk)

    def resolve(self, payment, *, approve=True, key=None):
        return ResolveHold(
            request=self.once((payment.payment_id, approve), key),
            payment_id=payment.payment_id,
            transfer_id=self.new_id(),
            payer=payment.payer,
            vendor=payment.vendor,
            approve=approve,
            actor=ADMIN,
            reason="seen",
        )

    def refund(self, payment, amount, *, currency=None, key=None):
        currency = currency or payment.payer.currency_code
        return Refund(
            request=self.once((payment.payment_id, amount, currency), key),
            payment_id=payment.payment_id,
            transfer_id=self.new_id(),
            payer=payment.payer,
            vendor=payment.vendor,
            amount=Money(amount, currency),
            actor=ADMIN,
            reason="",
        )

    def balance(self, owner, bucket=Bucket.ONLINE, currency="INR"):
        wallet = self.book.ledger.wallets.get(WalletKey(owner, currency))
        return 0 if wallet is None else wallet.balance(bucket)


def copied(book):
    """As it stands now. What is in it is frozen, but for the wallets."""
    wallets = {
        key: replace(wallet, balances=list(wallet.balances))
        for key, wallet in book.ledger.wallets.items()
    }
    parts = {field.name: copy.copy(getattr(book, field.name)) for field in fields(book)}
    ledger = Ledger(wallets, list(book.ledger.transfers), set(book.ledger.changed))
    return Book(**parts | {"ledger": ledger})


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


def open_tasks(book):
    return set(book.new_tasks) - set(book.done_tasks)


def laws_hold(book):
    wallets = book.ledger.wallets
    for currency in POLICY.currencies:  # 1
        assert sum(sum(w.balances) for k, w in wallets.items() if k.currency_code == currency) == 0
    folded = Counter()
    for transfer in book.ledger.transfers:
        folded[transfer.debit] -= transfer.amount
        folded[transfer.credit] += transfer.amount
    for key, wallet in wallets.items():
        for bucket in Bucket:
            assert wallet.balance(bucket) == folded[Account(key, bucket)]  # 3
            if key.owner_id not in SYSTEM_NAMES:
                assert wallet.balance(bucket) >= 0  # 2
    purposes = {}
    for transfer in book.ledger.transfers:
        if transfer.payment_id is not None:
            purposes.setdefault(transfer.payment_id, Counter())[transfer.purpose] += 1
    held = Counter()
    for payment in book.payments.values():  # 8
        moved = purposes.get(payment.payment_id, Counter())
        resolved = moved[Purpose.HOLD_CAPTURE] + moved[Purpose.HOLD_RELEASE]
        assert moved[Purpose.HOLD] == resolved + (payment.state is State.FLAGGED)
        paid = moved[Purpose.PAYMENT] + moved[Purpose.HOLD_CAPTURE]
        assert paid == (payment.state is State.SUCCESS)
        held[payment.payer] += payment.amount * (payment.state is State.FLAGGED)
        assert 0 <= payment.refunded <= payment.amount
    for key, wallet in wallets.items():
        assert wallet.balance(Bucket.HELD) == held[key]


def states_follow_from_facts(book, states, facts):
    """Every new fact about a payment is one move; folded, the facts say where each payment stands."""
    for fact in facts:
        if isinstance(fact, PaymentMoved):
            payment_id = fact.payment.payment_id
            assert (states.get(payment_id), fact.state) in MOVES
            assert fact.payment.state is fact.state
            states[payment_id] = fact.state
    assert states == {key: payment.state for key, payment in book.payments.items()}


def the_first_answer(command, earlier, outcome, book):
    """4. A replay gets the first answer; a payment's is brought up to date."""
    if isinstance(earlier, Payment):
        assert outcome == book.payments[earlier.payment_id]
    else:
        assert outcome == earlier


@settings(max_examples=80, deadline=None)
@given(st.lists(steps(), min_size=25, max_size=50))
def test_the_laws_hold_after_every_command_whatever_came_before(taken):
    world = World().opened(*OWNERS)
    for owner in OWNERS:
        world.do(world.top_up(owner, 3_000_00))
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
        if command.request is not None:
            known = answers.get(command.request.key)
            if known is None:
                answers[command.request.key] = (command.request.body_hash, copy.deepcopy(outcome))
            else:
                assert known[0] == command.request.body_hash  # else REQUEST_ID_REUSED
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
