"""Any sequence of commands through the group and the real store, against a model that only counts."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from datetime import UTC, datetime

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from uuid_utils import UUID, uuid4, uuid7

from services import names, sql
from services.money import Money
from services.payment import audit, store
from services.payment.domain.book import Request, Task
from services.payment.domain.commands import (
    CreatePayment,
    RecordAssessment,
    Refund,
    ResolveHold,
    SettlePending,
)
from services.payment.domain.ledger import Bucket, Purpose, WalletKey
from services.payment.domain.offline_commands import (
    ReleaseReservation,
    ReserveFunds,
    SettleOffline,
)
from services.payment.domain.payment import Decision, Risk, State
from services.payment.domain.reservation import ReservationState
from services.payment.domain.wallet_commands import MoveFunds, SetOwner
from services.payment.group import Group
from services.refusal import Refusal
from tallystick.fraud.v1 import fraud_service_pb2 as fraud_pb
from tests.ledger_model import POLICY, Model, said

PEOPLE = tuple(UUID(int=number) for number in range(101, 105))
VENDORS = PEOPLE[2:]

ANSWERS = {
    Decision.ALLOW: fraud_pb.Assessment.DECISION_ALLOW,
    Decision.REVIEW: fraud_pb.Assessment.DECISION_REVIEW,
    Decision.DECLINE: fraud_pb.Assessment.DECISION_DECLINE,
}

people = st.sampled_from(PEOPLE)
vendors = st.sampled_from(VENDORS)
amounts = st.sampled_from([1, 7, 10, 30, 50, 51, 90])
answers = st.sampled_from([Decision.ALLOW] * 3 + [Decision.REVIEW] * 3 + [Decision.DECLINE])
which = st.integers(0, 10**6)
# Most requests are new, a few come again or lend their id to another.
ids = st.sampled_from([None, None, None, 0, 1, 2])


class GroupAgainstModel(RuleBasedStateMachine):
    """Commands are sent several at a time, so that they share groups; the model decides them one by one."""

    def __init__(self, template, path):
        super().__init__()
        shutil.copyfile(template, path)
        self.url = f"sqlite+aiosqlite:///{path}"
        self.runner = asyncio.Runner()
        self.model = Model()
        self.answers = {}  # what the fraud service will say, by payment
        self.away = False
        self.waiting = []  # (command, facts, what the model says)
        self.order = []  # payments, as they were made
        self.runner.run(self.start())

    async def start(self):
        self.engine = sql.create_engine(self.url)
        self.group = Group(
            self.engine,
            POLICY,
            assess=self.assess,
            committed=lambda: None,
            now=lambda: datetime.now(UTC),
            new_id=uuid7,
            pace=lambda: 0.0,
            size_max=5,
            queue_max=1_000,
        )
        self.running = asyncio.create_task(self.group.run())

    async def stop(self):
        self.group.close()
        await self.running
        await self.engine.dispose()

    def teardown(self):
        self.send()
        self.runner.run(self.laws_hold())
        self.runner.run(self.stop())
        self.runner.close()

    async def assess(self, facts):
        if self.away:
            return None
        return [
            fraud_pb.Assessment(payment=each.payment, decision=ANSWERS[self.answers[each.payment]])
            for each in facts
        ]

    def plan(self, command, expected, facts=None):
        self.waiting.append((command, facts, expected))

    def once(self, caller, request, body):
        """A request: a new one, or one of a few that all share."""
        number = uuid4().int if request is None else request
        key = caller.bytes + number.to_bytes(16)
        return Request(key, hashlib.sha256(repr(body).encode()).digest(), str(UUID(int=number)))

    @initialize(known=st.sampled_from([PEOPLE, PEOPLE, PEOPLE[1:3]]))
    def some_have_money(self, known):
        for person in known:
            self.owner_changes(person, active=True, version=1)
            self.moves(person, 90, "top_up", None)

    @rule(
        what=st.sampled_from(["owner", "owner", "owner", "fraud", "service"]),
        person=people,
        active=st.sampled_from([True, True, False]),
        version=st.integers(1, 6),
    )
    def something_happens(self, what, person, active, version):
        if what == "owner":
            self.owner_changes(person, active, version)
        elif what == "fraud":  # it goes away, or comes back
            self.send()
            self.away = not self.away
        else:  # the service starts anew
            self.send()
            self.runner.run(self.stop())
            self.runner.run(self.start())

    def owner_changes(self, person, active, version):
        command = SetOwner(person, active, person in VENDORS, version, POLICY.currencies)
        self.plan(command, self.model.set_owner(person, active, version))

    @rule(
        person=people,
        amount=amounts,
        kind=st.sampled_from(["top_up", "top_up", "payout", "to_offline", "to_online"]),
        request=ids,
    )
    def money_moves(self, person, amount, kind, request):
        self.moves(person, amount, kind, request)

    def moves(self, person, amount, kind, request):
        purpose, source, target = {
            "top_up": (Purpose.TOP_UP, None, Bucket.ONLINE),
            "payout": (Purpose.PAYOUT, Bucket.ONLINE, None),
            "to_offline": (Purpose.MOVE_BALANCE, Bucket.ONLINE, Bucket.OFFLINE),
            "to_online": (Purpose.MOVE_BALANCE, Bucket.OFFLINE, Bucket.ONLINE),
        }[kind]
        body = (kind, amount)
        command = MoveFunds(
            request=self.once(person, request, body),
            transfer_id=uuid7(),
            wallet=WalletKey(person, "INR"),
            purpose=purpose,
            source=source,
            target=target,
            amount=Money(amount, "INR"),
            reference="",
            actor="",
        )
        source, target = (bucket.name.lower() if bucket else "out" for bucket in (source, target))
        if kind != "top_up" and person not in self.model.active:
            expected = "WALLET_NOT_FOUND"
        else:
            expected = self.model.once(
                command.request.key, body, lambda: self.model.move(person, source, target, amount)
            )
        self.plan(command, expected)

    @rule(
        payer=people,
        vendor=vendors,
        amount=amounts,
        answer=answers,
        wait=st.booleans(),
        request=ids,
        times=st.integers(1, 4),
    )
    def payments_are_made(self, times, *, payer, vendor, amount, answer, wait, request):
        for _ in range(times if payer != vendor else 0):
            self.pays(payer, vendor, amount, answer, wait=wait, request=request)

    def pays(self, payer, vendor, amount, answer, *, wait, request):
        body = ("pay", vendor, amount)
        payment_id = uuid7()
        self.answers[names.payment_name(payment_id)] = answer
        command = CreatePayment(
            request=self.once(payer, request, body),
            payment_id=payment_id,
            transfer_id=uuid7(),
            payer=WalletKey(payer, "INR"),
            vendor_id=vendor,
            site_id=None,
            amount=amount,
            position=None,
            reference="",
            wait=wait,
        )
        decision = Decision.DEGRADED if self.away else answer
        expected = self.model.once(
            command.request.key,
            body,
            lambda: self.model.pay(payment_id, payer, vendor, amount, decision, wait=wait),
        )
        if payment_id in self.model.payments:
            self.order.append(payment_id)
        facts = fraud_pb.PaymentFacts(payment=names.payment_name(payment_id))
        self.plan(command, expected, facts if wait else None)

    def has(self, state):
        return any(payment["state"] is state for payment in self.model.payments.values())

    def some_payment(self, number, state):
        """Mostly one in a state, sometimes any."""
        fitting = [each for each in self.order if self.model.payments[each]["state"] is state]
        found = fitting if fitting and number % 5 else self.order
        payment_id = found[number % len(found)]
        payment = self.model.payments[payment_id]
        return payment_id, WalletKey(payment["payer"], "INR"), WalletKey(payment["vendor"], "INR")

    @precondition(lambda self: self.order)
    @rule(number=which, answer=answers)
    def a_payment_on_record_is_settled(self, number, answer):
        self.send()  # as in service: nothing settles what is not yet on record
        payment_id, payer, vendor = self.some_payment(number, State.PENDING)
        self.answers[names.payment_name(payment_id)] = answer
        decision = Decision.DEGRADED if self.away else answer
        facts = fraud_pb.PaymentFacts(payment=names.payment_name(payment_id))
        command = SettlePending(payment_id, uuid7(), payer, vendor)
        self.plan(command, self.model.settle(payment_id, decision), facts)

    @precondition(lambda self: self.has(State.FLAGGED))
    @rule(number=which, approve=st.booleans(), request=ids)
    def a_review_ends(self, number, approve, request):
        payment_id, payer, vendor = self.some_payment(number, State.FLAGGED)
        body = ("resolve", payment_id, approve)
        once = self.once(UUID(int=1), request, body)
        command = ResolveHold(once, payment_id, uuid7(), payer, vendor, approve, "", "seen")
        resolve = lambda: self.model.resolve(payment_id, approve=approve)  # noqa: E731
        self.plan(command, self.model.once(once.key, body, resolve))

    @precondition(lambda self: self.has(State.SUCCESS))
    @rule(number=which, amount=st.sampled_from([1, 3, 10, 90]), request=ids)
    def a_payment_is_refunded(self, number, amount, request):
        payment_id, payer, vendor = self.some_payment(number, State.SUCCESS)
        body = ("refund", payment_id, amount)
        once = self.once(vendor.owner_id, request, body)
        money = Money(amount, "INR")
        command = Refund(once, payment_id, uuid7(), payer, vendor, money, "", "")
        refund = lambda: self.model.refund(payment_id, amount)  # noqa: E731
        self.plan(command, self.model.once(once.key, body, refund))

    @rule(
        person=people,
        amounts=st.lists(st.sampled_from([1, 3, 5, 10]), min_size=1, max_size=3),
        top_up=st.sampled_from([True, True, False]),
        request=ids,
    )
    def money_is_reserved(self, person, amounts, top_up, request):
        if person not in self.model.active:
            return
        if top_up:
            self.moves(person, 30, "top_up", None)
            self.moves(person, 30, "to_offline", None)
        made = {uuid7(): amount for amount in amounts}
        # Another request for the same amounts is for other reservations.
        once = self.once(UUID(int=1), request, ("reserve", person, amounts))
        command = ReserveFunds(once, uuid7(), WalletKey(person, "INR"), tuple(made.items()))
        reserve = lambda: self.model.reserve(person, made)  # noqa: E731
        self.plan(command, self.model.once(once.key, ("reserve", person, amounts), reserve))

    def some_reservation(self, number):
        """Mostly a live one."""
        reservations = self.model.reservations
        live = [each for each in reservations if self.is_live(each)]
        found = live if live and number % 4 else list(reservations)
        return found[number % len(found)]

    def is_live(self, reservation_id):
        return self.model.reservations[reservation_id]["state"] is ReservationState.LIVE

    @precondition(lambda self: self.model.reservations)
    @rule(
        number=which,
        vendor=vendors,
        amount=st.sampled_from([1, 1, 3, 5, 10]),
        answer=answers,
        hold=st.sampled_from(["", "", "LATE_UPLOAD"]),
        same=st.sampled_from([False, False, True]),
        times=st.integers(1, 3),
    )
    def a_code_is_spent(self, number, times, *, vendor, amount, answer, hold, same):
        """Once or at several terminals at the same time, under one name or each under its own."""
        reservation_id = self.some_reservation(number)
        payment_id = uuid7()
        for _ in range(times):
            payment_id = payment_id if same else uuid7()
            self.spends(payment_id, reservation_id, vendor, amount, answer=answer, hold=hold)

    def spends(self, payment_id, reservation_id, vendor, amount, *, answer, hold):
        name = names.payment_name(payment_id)
        self.answers[name] = answer
        body = ("spend", payment_id, reservation_id, vendor, amount, hold)
        command = SettleOffline(
            payment_id=payment_id,
            transfer_id=uuid7(),
            release_id=uuid7(),
            reservation_id=reservation_id,
            payer=WalletKey(self.model.reservations[reservation_id]["payer"], "INR"),
            vendor_id=vendor,
            terminal_id=UUID(int=7),
            site_id=None,
            amount=Money(amount, "INR"),
            spend_time=datetime(2026, 3, 1, tzinfo=UTC),
            position=None,
            reference="",
            hold_reason=hold,
        )
        decision = Decision.DEGRADED if self.away else answer
        spend = lambda: self.model.spend(  # noqa: E731
            payment_id, reservation_id, vendor, amount, decision=decision, hold=hold
        )
        expected = self.model.once(payment_id, body, spend)
        if payment_id in self.model.payments and payment_id not in self.order:
            self.order.append(payment_id)
        self.plan(command, expected, fraud_pb.PaymentFacts(payment=name))

    @precondition(lambda self: self.model.reservations)
    @rule(number=which)
    def a_reservation_is_released(self, number):
        reservation_id = self.some_reservation(number)
        payer = WalletKey(self.model.reservations[reservation_id]["payer"], "INR")
        command = ReleaseReservation(reservation_id, uuid7(), payer)
        self.plan(command, self.model.release(reservation_id))

    @precondition(lambda self: any(each["unseen"] for each in self.model.payments.values()))
    @rule(number=which)
    def an_unseen_payment_is_assessed(self, number):
        unseen = [each for each in self.order if self.model.payments[each]["unseen"]]
        payment_id = unseen[number % len(unseen)]
        payer = WalletKey(self.model.payments[payment_id]["payer"], "INR")
        command = RecordAssessment(payment_id, payer, Risk(Decision.REVIEW, 60, ("SIGN",)))
        self.plan(command, self.model.assessed(payment_id))

    @precondition(lambda self: 0 < len(self.waiting) < 50)
    @rule()
    def what_waits_comes_again(self):
        """As after a lost answer: the same commands once more, all at once."""
        for command, facts, expected in self.waiting[:10]:
            once = command.request is not None or isinstance(command, SettleOffline)
            if expected.isupper() or not once:
                continue
            self.plan(command, expected, facts)

    @rule()
    def send(self):
        """Everything planned, at once; then the database must say what the model says."""
        waiting, self.waiting = self.waiting, []
        outcomes = self.runner.run(self.submit_all(waiting))
        for (_, _, expected), outcome in zip(waiting, outcomes, strict=True):
            assert said(outcome) == expected
        self.runner.run(self.compare())

    async def submit_all(self, waiting):
        work = (self.group.submit(command, facts) for command, facts, _ in waiting)
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Refusal):
                raise outcome
        return outcomes

    async def compare(self):
        async with sql.reading(self.engine) as connection:
            for person in PEOPLE:
                wallet = await store.read_wallet(connection, WalletKey(person, "INR"))
                assert (wallet is not None) == (person in self.model.active)
                if wallet is None:
                    continue
                expected = [self.model.money[person, b.name.lower()] for b in Bucket]
                assert wallet.balances == expected
                assert wallet.active == self.model.active[person]
            found = await store.read_payments(connection, self.order)
            reserved = await store.read_reservations(connection, list(self.model.reservations))
            tasks = set((await connection.execute(sa.select(store.payment_tasks))).all())
        assert len(found) == len(self.order)
        expected = {each: found["state"] for each, found in self.model.reservations.items()}
        assert {each: found.state for each, found in reserved.items()} == expected
        due = set()
        for payment_id, payment in found.items():
            expected = self.model.payments[payment_id]
            assert payment.state is expected["state"]
            assert payment.refunded == expected["refunded"]
            if payment.state is State.PENDING:
                due.add((Task.SETTLE, payment_id))
            if expected["unseen"]:
                due.add((Task.ASSESS, payment_id))
        assert {(Task(row.task), row.payment_id) for row in tasks} == due

    async def laws_hold(self):
        findings = await audit.check(self.engine)
        assert [each.first_broken for each in findings.values() if not each.holds] == []


def test_the_group_and_the_store_do_what_the_model_says(sqlite_url, tmp_path):
    template = sqlite_url("payment").removeprefix("sqlite+aiosqlite:///")
    made = iter(range(10**6))

    run_state_machine_as_test(
        lambda: GroupAgainstModel(template, tmp_path / f"model-{next(made)}.db"),
        settings=settings(max_examples=15, stateful_step_count=60, deadline=None),
    )
