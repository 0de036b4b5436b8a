"""ReviewService over mutual TLS, with a real Valkey, SQLite and MariaDB."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from uuid_utils import uuid4

from services import streams
from services.admin import store
from tallystick.admin.v1 import review_service_pb2 as pb
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.user.v1 import user_pb2
from tests.event_stream import publish
from tests.eventually import eventually
from tests.fakes.owners import Accounts, Holds
from tests.review_desk import (
    APPROVE,
    REJECT,
    Person,
    a_flagged_payment,
    a_user,
    account_changed,
    approved,
    around_a_review_desk,
    assessed,
    failed,
    flagged,
    registered,
    succeeded,
)
from tests.schema import differences
from tests.user_service import reason_of, refusal_of

OPEN, DECIDING = pb.Case.STATE_OPEN, pb.Case.STATE_DECIDING
APPROVED, REJECTED = pb.Case.STATE_APPROVED, pb.Case.STATE_REJECTED
SETTLED = pb.Case.STATE_SETTLED

# What does not touch the database needs no second one.
sqlite_only = pytest.mark.parametrize("dialect", ["sqlite"])


@pytest.fixture
async def around(tls_for, valkey_url, database_url):
    async with around_a_review_desk(tls_for, valkey_url, database_url) as desk:
        yield desk


@pytest.fixture
async def desk(around):
    async with around.running():
        yield around


async def test_a_registration_opens_a_case_that_shows_who_registered(desk):
    user = a_user()

    case = await desk.open_case(user)

    assert (case.kind, case.state) == (pb.Case.KIND_REGISTRATION, OPEN)
    assert case.user == user
    assert not case.HasField("payment")
    assert (case.decider, case.reason, case.HasField("decide_time")) == ("", "", False)


async def test_a_flagged_payment_opens_a_case_that_shows_the_payment(desk):
    payment = a_flagged_payment()
    event = flagged(payment)
    await desk.happen(event)

    case = await desk.case_about(payment)

    assert (case.kind, case.state) == (pb.Case.KIND_FLAGGED_PAYMENT, OPEN)
    assert case.payment == payment
    assert case.create_time == event.occur_time


@pytest.mark.parametrize(("decision", "becomes"), [(APPROVE, APPROVED), (REJECT, REJECTED)])
async def test_a_case_of_an_offline_payment_shows_how_where_and_when_it_was_paid(
    desk, decision, becomes
):
    payment = a_flagged_payment()
    payment.channel = payment_pb2.Payment.CHANNEL_OFFLINE
    payment.terminal = f"{payment.vendor}/terminals/{uuid4()}"
    event = flagged(payment)
    # Paid two days before it was uploaded.
    sold = event.occur_time.ToDatetime(UTC) - timedelta(days=2)
    event.payment_flagged.payment.occur_time.FromDatetime(sold)
    await desk.happen(event)

    case = await desk.case_about(payment)

    assert case.kind == pb.Case.KIND_FLAGGED_PAYMENT
    assert case.payment.channel == payment_pb2.Payment.CHANNEL_OFFLINE
    assert case.payment.terminal == payment.terminal
    assert case.payment.occur_time.ToDatetime(UTC) == sold
    assert case.create_time == event.occur_time
    decided = (await desk.decide(case, decision)).case
    assert (decided.state, decided.payment) == (becomes, event.payment_flagged.payment)
    assert await desk.list(kind=pb.Case.KIND_FLAGGED_PAYMENT) == [decided]


@sqlite_only
async def test_an_operator_made_by_an_operator_waits_for_nobody(desk):
    admin = a_user()
    admin.state = user_pb2.User.STATE_ACTIVE

    await desk.happen(registered(admin))
    await desk.all_read()

    assert await desk.rows() == 0


@pytest.mark.parametrize(
    ("decision", "state"),
    [(payment_pb2.Risk.DECISION_REVIEW, OPEN), (payment_pb2.Risk.DECISION_DECLINE, OPEN)],
)
@sqlite_only
async def test_a_late_assessment_that_would_not_have_passed_opens_a_case(desk, decision, state):
    payment = a_flagged_payment()
    await desk.happen(assessed(payment, decision))

    case = await desk.case_about(payment)

    assert (case.kind, case.state) == (pb.Case.KIND_LATE_ASSESSMENT, state)
    assert case.payment.risk.decision == decision


@sqlite_only
async def test_what_needs_nobody_leaves_no_trace(desk):
    payment, user = a_flagged_payment(), a_user()
    payment.risk.decision = payment_pb2.Risk.DECISION_ALLOW

    await desk.happen(
        assessed(payment, payment_pb2.Risk.DECISION_ALLOW),
        succeeded(payment),
        failed(payment),
        account_changed(
            user, event_pb2.UserChanged.CHANGE_SUSPENDED, user_pb2.User.STATE_SUSPENDED
        ),
        account_changed(user, event_pb2.UserChanged.CHANGE_PASSWORD, user_pb2.User.STATE_ACTIVE),
    )
    await desk.all_read()

    assert await desk.rows() == 0


@pytest.mark.parametrize(
    ("decision", "state", "moved_to"),
    [
        (APPROVE, APPROVED, payment_pb2.Payment.STATE_SUCCESS),
        (REJECT, REJECTED, payment_pb2.Payment.STATE_FAILED),
    ],
)
async def test_a_decision_moves_the_held_money_before_it_is_answered(
    desk, decision, state, moved_to
):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)

    decided = (await desk.decide(case, decision, reason="called the shop")).case

    assert desk.holds.moves == [(payment.name, moved_to)]
    asked, *again = desk.holds.asked
    assert all(one == asked for one in again), "on a slow day the sweeper asks too, and the same"
    assert (asked.actor, asked.reason) == (desk.asha.name, "called the shop")
    assert desk.payment.calls[-1].caller.service == "admin"
    assert (decided.state, decided.decider, decided.reason) == (
        state,
        desk.asha.name,
        "called the shop",
    )
    assert decided.HasField("decide_time")
    assert (await desk.get(case)).case == decided
    outcome = pb.Case.State.Name(state).removeprefix("STATE_").lower()
    assert await desk.told(case) == [
        ("case_opened", "", "services/admin"),
        ("case_closed", outcome, desk.asha.name),
    ]


@pytest.mark.parametrize(
    ("decision", "state", "becomes"),
    [
        (APPROVE, APPROVED, user_pb2.User.STATE_ACTIVE),
        (REJECT, REJECTED, user_pb2.User.STATE_REJECTED),
    ],
)
async def test_a_decision_on_a_registration_changes_the_account(desk, decision, state, becomes):
    user = a_user()
    case = await desk.open_case(user)

    decided = (await desk.decide(case, decision, reason="papers seen")).case

    assert decided.state == state
    assert desk.accounts.states[user.name] == becomes
    asked, *again = desk.accounts.asked
    assert all(one == asked for one in again), "on a slow day the sweeper asks too, and the same"
    assert (asked.name, asked.actor, asked.reason) == (user.name, desk.asha.name, "papers seen")


@pytest.mark.parametrize(("decision", "state"), [(APPROVE, APPROVED), (REJECT, REJECTED)])
async def test_a_decision_on_a_late_assessment_is_only_recorded(desk, decision, state):
    payment = a_flagged_payment()
    await desk.happen(assessed(payment, payment_pb2.Risk.DECISION_DECLINE))
    case = await desk.case_about(payment)

    decided = (await desk.decide(case, decision)).case

    assert (decided.state, decided.decider) == (state, desk.asha.name)
    assert desk.holds.asked == []


async def test_the_events_of_a_decision_do_not_settle_its_case(desk):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)
    decided = (await desk.decide(case)).case

    await desk.happen(succeeded(payment, review_reason="looked at it"))
    await desk.all_read()

    assert (await desk.get(case)).case == decided


async def test_what_is_settled_elsewhere_closes_its_case(desk):
    user, payment = a_user(), a_flagged_payment()
    cases = [await desk.open_case(subject) for subject in (user, payment)]

    await desk.happen(approved(user), failed(payment, review_reason="by hand"))

    for case, subject in zip(cases, (user, payment), strict=True):
        settled = await desk.case_about(subject, SETTLED)
        assert (settled.decider, settled.reason) == ("", "")
        assert settled.HasField("decide_time")
        assert await desk.told(case) == [
            ("case_opened", "", "services/admin"),
            ("case_closed", "settled", "services/admin"),
        ]


async def test_events_that_come_twice_and_in_the_wrong_order_make_one_case(desk):
    user, payment = a_user(), a_flagged_payment()
    backwards = [
        approved(user),
        succeeded(payment, review_reason="fine"),
        registered(user),
        flagged(payment),
    ]

    await desk.happen(*backwards[:2])
    await desk.all_read()
    assert await desk.list() == []
    await desk.happen(*backwards, *backwards)
    await desk.all_read()

    cases = await desk.list()
    assert [case.state for case in cases] == [SETTLED, SETTLED]
    assert {case.user.name or case.payment.name for case in cases} == {user.name, payment.name}
    for case in cases:
        assert [fact for fact, _, _ in await desk.told(case)] == ["case_opened", "case_closed"]


async def test_several_replicas_share_the_events_and_make_each_case_once(around):
    payments = [a_flagged_payment() for _ in range(20)]
    async with around.running(), around.running():
        await asyncio.gather(*(around.happen(flagged(each), flagged(each)) for each in payments))
        await around.all_read()

        cases = await around.list(page_size=200)

    assert sorted(case.payment.name for case in cases) == sorted(each.name for each in payments)


async def test_when_two_decide_at_once_one_wins_and_the_other_is_told(desk):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)

    answers = await asyncio.gather(
        desk.decide(case, APPROVE, by=desk.asha),
        desk.decide(case, REJECT, by=desk.bina),
        return_exceptions=True,
    )

    (won,) = [answer for answer in answers if isinstance(answer, pb.DecideCaseResponse)]
    (lost,) = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert lost.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert len(desk.holds.moves) == 1
    winner = desk.asha if won.case.state == APPROVED else desk.bina
    assert won.case.decider == winner.name
    assert (await desk.get(case)).case == won.case


async def test_the_same_decision_sent_twice_at_once_is_answered_twice_and_made_once(desk):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)

    first, second = await asyncio.gather(desk.decide(case), desk.decide(case))
    third = await desk.decide(case, reason="in other words")

    assert first == second == third
    assert len(desk.holds.moves) == 1
    assert [fact for fact, _, _ in await desk.told(case)] == ["case_opened", "case_closed"]


@pytest.mark.parametrize(
    ("decision", "by"), [(REJECT, "asha"), (APPROVE, "bina"), (REJECT, "bina")]
)
async def test_a_decided_case_refuses_other_decisions(desk, decision, by):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)
    await desk.decide(case)

    refused = await refusal_of(desk.decide(case, decision, by=getattr(desk, by)))

    assert (refused.code, refused.domain, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "admin.tallystick",
        "CASE_DECIDED",
    )
    assert refused.metadata == {"state": "APPROVED", "decider": desk.asha.name}
    assert len(desk.holds.moves) == 1


async def test_a_decision_on_what_was_settled_meanwhile_is_refused_and_settles_the_case(desk):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)
    desk.holds.states[payment.name] = payment_pb2.Payment.STATE_FAILED

    refused = await refusal_of(desk.decide(case))

    assert refused.reason == "CASE_DECIDED"
    assert refused.metadata == {"state": "SETTLED", "decider": ""}
    assert (await desk.get(case)).case.state == SETTLED
    assert desk.holds.moves == []


@sqlite_only
async def test_a_registration_rejected_elsewhere_is_not_approved_here(desk):
    user = a_user()
    case = await desk.open_case(user)
    desk.accounts.states[user.name] = user_pb2.User.STATE_REJECTED

    assert (await refusal_of(desk.decide(case))).metadata["state"] == "SETTLED"


@sqlite_only
async def test_a_registration_approved_elsewhere_may_be_approved_here_too(desk):
    user = a_user()
    case = await desk.open_case(user)
    desk.accounts.states[user.name] = user_pb2.User.STATE_ACTIVE

    assert (await desk.decide(case)).case.state == APPROVED


async def test_a_decision_that_its_owner_refuses_leaves_the_case_open_for_another(desk):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)
    desk.holds.vendor_is_full = True

    refused = await refusal_of(desk.decide(case))

    assert refused.reason == "DECISION_REFUSED"
    assert refused.metadata == {"dependency": "payment", "cause": "BALANCE_OVER_LIMIT"}
    assert (await desk.get(case)).case == case
    assert (await desk.decide(case, REJECT, by=desk.bina)).case.state == REJECTED
    assert desk.holds.moves == [(payment.name, payment_pb2.Payment.STATE_FAILED)]


async def test_a_decision_waits_while_payment_is_away_and_takes_effect_by_itself(desk):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)
    await desk.payment.stop()

    refused = await refusal_of(desk.decide(case))

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DECISION_PENDING")
    assert refused.metadata == {"dependency": "payment"}
    assert refused.retry_after >= timedelta(seconds=1)
    waiting = (await desk.get(case)).case
    assert (waiting.state, waiting.decider) == (DECIDING, desk.asha.name)
    assert not waiting.HasField("decide_time")
    assert await reason_of(desk.decide(case, REJECT, by=desk.bina)) == "CASE_DECIDED"

    await desk.payment.start()

    decided = await desk.case_about(payment, APPROVED)
    assert decided.decider == desk.asha.name
    assert len(desk.holds.moves) == 1
    assert (await desk.decide(case)).case == decided


@pytest.mark.parametrize("decision", [APPROVE, REJECT])
async def test_a_decision_whose_answer_was_lost_is_made_once_and_found_again(desk, decision):
    payment, user = a_flagged_payment(), a_user()
    cases = [await desk.open_case(subject) for subject in (payment, user)]
    desk.holds.answers_to_lose = desk.accounts.answers_to_lose = 3

    for case in cases:
        assert await reason_of(desk.decide(case, decision)) == "DECISION_PENDING"

    expected = APPROVED if decision == APPROVE else REJECTED
    for case, subject in zip(cases, (payment, user), strict=True):
        assert (await desk.case_about(subject, expected, SETTLED)).state == expected
        told = [fact for fact, _, _ in await desk.told(case)]
        assert told == ["case_opened", "case_closed"]
    assert len(desk.holds.moves) == 1
    assert len({request.request_id for request in desk.holds.asked}) == 1


async def test_a_service_that_died_between_the_steps_goes_on_when_it_starts_again(around):
    payment = a_flagged_payment()
    async with around.running():
        case = await around.open_case(payment)
        await around.payment.stop()
        assert await reason_of(around.decide(case, reason="fine")) == "DECISION_PENDING"

    await around.payment.start()
    async with around.running():
        decided = await around.case_about(payment, APPROVED)

    assert (decided.decider, decided.reason) == (around.asha.name, "fine")
    assert len(around.holds.moves) == 1


async def test_a_caller_who_hangs_up_does_not_leave_a_decision_halfway(desk):
    payment = a_flagged_payment()
    case = await desk.open_case(payment)
    asked = asyncio.Event()

    async def never(request, context):
        asked.set()
        await asyncio.sleep(60)

    desk.payment.behaviour[Holds.PATH] = never
    call = desk.decide(case)
    await asyncio.wait_for(asked.wait(), 5)
    call.cancel()
    desk.payment.behaviour[Holds.PATH] = desk.holds.resolve

    assert (await desk.case_about(payment, APPROVED)).decider == desk.asha.name


@sqlite_only
async def test_what_is_away_for_one_owner_holds_up_no_decision_of_the_other(desk):
    payments, user = [a_flagged_payment() for _ in range(3)], a_user()
    cases = [await desk.open_case(each) for each in payments]
    registration = await desk.open_case(user)
    desk.accounts.answers_to_lose = 1
    await desk.payment.stop()

    for case in [*cases, registration]:
        assert await reason_of(desk.decide(case)) == "DECISION_PENDING"

    assert (await desk.case_about(user, APPROVED)).state == APPROVED


@sqlite_only
async def test_no_such_case_is_said_plainly(desk):
    nobody = pb.Case(name=f"cases/{uuid4()}")

    for call in (desk.get(nobody), desk.decide(nobody)):
        refused = await refusal_of(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "CASE_NOT_FOUND")
        assert refused.metadata == {"name": nobody.name}


@sqlite_only
@pytest.mark.parametrize(
    ("changed", "field"),
    [({"name": "cases/1"}, "name"), ({"decision": 0}, "decision"), ({"reason": ""}, "reason")],
)
async def test_a_decision_that_says_too_little_is_refused_by_field(desk, changed, field):
    whole = {"name": f"cases/{uuid4()}", "decision": APPROVE, "reason": "fine"}
    request = pb.DecideCaseRequest(**{**whole, **changed})

    refused = await refusal_of(desk.stub.DecideCase(request, metadata=desk.asha.metadata))

    assert (refused.reason, refused.metadata["field"]) == ("FIELDS_INVALID", field)


@sqlite_only
@pytest.mark.parametrize("role", ["USER", "VENDOR"])
async def test_the_desk_is_for_operators(desk, role):
    who = Person(role)
    case = pb.Case(name=f"cases/{uuid4()}")

    assert await reason_of(desk.decide(case, by=who)) == "CALLER_NOT_ALLOWED"
    listing = desk.stub.ListCases(pb.ListCasesRequest(), metadata=who.metadata)
    assert await reason_of(listing) == "CALLER_NOT_ALLOWED"


@sqlite_only
async def test_another_service_is_no_operator(desk):
    async with desk.calling("payment") as stub:
        call = stub.ListCases(pb.ListCasesRequest(), metadata=desk.asha.metadata)

        assert await reason_of(call) == "CALLER_NOT_ALLOWED"


@sqlite_only
async def test_a_suspended_operator_decides_nothing(desk):
    fact = event_pb2.TokensRevoked(token_subject=desk.asha.name)
    fact.revoke_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=1))
    event = event_pb2.Event(event_id="1", source="user", tokens_revoked=fact)

    async def refused():
        # Again each time: a service that has just started may not listen yet. What was revoked
        # before it does is on a list, which the user service's stand-in does not keep.
        await publish(desk.redis, event)
        try:
            await desk.list()
        except grpc.aio.AioRpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED
        return False

    await eventually(refused, seconds=2)


async def test_cases_are_listed_newest_first_page_by_page(desk):
    subjects = []
    for _ in range(3):
        subjects += [a_user(), a_flagged_payment()]
    for subject in subjects:
        await desk.open_case(subject)
    decided = await desk.case_about(subjects[1])
    await desk.decide(decided)

    everything = await desk.list()
    listed = [case.user.name or case.payment.name for case in everything]
    assert listed == [subject.name for subject in reversed(subjects)]
    pages, token = [], ""
    while True:
        request = pb.ListCasesRequest(
            page_size=2, page_token=token, kind=pb.Case.KIND_FLAGGED_PAYMENT
        )
        answer = await desk.stub.ListCases(request, metadata=desk.asha.metadata)
        pages.append([case.payment.name for case in answer.cases])
        token = answer.next_page_token
        if not token:
            break
    assert pages == [[subjects[5].name, subjects[3].name], [subjects[1].name]]
    assert [case.name for case in await desk.list(state=APPROVED)] == [decided.name]
    assert await desk.list(state=APPROVED, kind=pb.Case.KIND_REGISTRATION) == []


@sqlite_only
async def test_a_page_token_is_good_for_its_own_list_only(desk):
    for _ in range(2):
        await desk.open_case(a_user())
    request = pb.ListCasesRequest(page_size=1)
    token = (await desk.stub.ListCases(request, metadata=desk.asha.metadata)).next_page_token

    for wrong in (
        pb.ListCasesRequest(page_size=1, page_token=token, state=OPEN),
        pb.ListCasesRequest(page_token="nonsense"),
    ):
        call = desk.stub.ListCases(wrong, metadata=desk.asha.metadata)
        assert await reason_of(call) == "PAGE_TOKEN_INVALID"


async def test_a_watcher_sees_cases_open_and_close_within_a_second(desk):
    payment = a_flagged_payment()
    watching = desk.watch()
    first = await asyncio.wait_for(watching.read(), 1)
    assert first.cursor
    assert not first.HasField("case")

    started = time.monotonic()
    await desk.happen(flagged(payment))
    opened = await asyncio.wait_for(watching.read(), 5)
    assert time.monotonic() - started < 1
    assert (opened.case.payment, opened.case.state) == (payment, OPEN)

    started = time.monotonic()
    await desk.decide(opened.case)
    closed = await asyncio.wait_for(watching.read(), 5)
    assert time.monotonic() - started < 1
    assert (closed.case.name, closed.case.state) == (opened.case.name, APPROVED)
    watching.cancel()


@sqlite_only
async def test_a_watcher_who_was_away_resumes_behind_the_last_message(desk):
    before, missed = a_user(), a_user()
    watching = desk.watch()
    await watching.read()
    await desk.happen(registered(before))
    seen = await asyncio.wait_for(watching.read(), 5)
    watching.cancel()
    await desk.open_case(missed)

    watching = desk.watch(seen.cursor)
    again = await asyncio.wait_for(watching.read(), 5)
    following = await asyncio.wait_for(watching.read(), 5)
    watching.cancel()

    assert (again.cursor, again.HasField("case")) == (seen.cursor, False)
    assert following.case.user == missed


@sqlite_only
async def test_a_watcher_sees_a_case_that_its_owner_refused_open_again(desk):
    case = await desk.open_case(a_flagged_payment())
    desk.holds.vendor_is_full = True
    watching = desk.watch()
    await watching.read()

    assert await reason_of(desk.decide(case)) == "DECISION_REFUSED"

    assert (await asyncio.wait_for(watching.read(), 5)).case == case
    watching.cancel()


@sqlite_only
@pytest.mark.parametrize("cursor", ["nonsense", "1-1"])
async def test_a_cursor_that_is_none_or_too_old_is_refused(desk, cursor):
    await desk.open_case(a_user())
    await eventually(lambda: streams.latest(desk.redis, "admin"))

    assert await reason_of(desk.watch(cursor).read()) == "CURSOR_EXPIRED"


async def test_the_migrations_make_the_tables_the_store_uses(database_url):
    assert await differences(database_url("admin"), store.metadata) == []


def test_the_fakes_answer_at_the_paths_of_the_contract():
    from tallystick.payment.v1 import settlement_service_pb2
    from tallystick.user.v1 import user_service_pb2

    methods = {
        f"/{service.full_name}/{method.name}"
        for file in (settlement_service_pb2, user_service_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }

    assert {Holds.PATH, Accounts.APPROVE_PATH, Accounts.REJECT_PATH} <= methods
