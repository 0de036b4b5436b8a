"""What the ledger knows of accounts: by event, by asking, and never older than it knew."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from services.payment import store
from services.payment.domain.ledger import WalletKey
from services.payment.rows import wallet_id, wallet_key
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import user_pb2
from tests.event_stream import an_event, publish
from tests.eventually import eventually
from tests.fakes.user import an_account
from tests.payment_stack import FAILED, SUCCESS, Person, a_top_up, refused

pytestmark = pytest.mark.parametrize("dialect", ["sqlite"])

VENDOR = access_pb2.ROLE_VENDOR
PENDING_APPROVAL = user_pb2.User.STATE_PENDING_APPROVAL
SUSPENDED = user_pb2.User.STATE_SUSPENDED
REJECTED = user_pb2.User.STATE_REJECTED


def news_of(account, change=event_pb2.UserChanged.CHANGE_APPROVED):
    fact = event_pb2.UserChanged(change=change, user=account)
    return an_event("user", account.name, user_changed=fact)


async def known_of(bank, person):
    """(may move money, version of the account) on record; None when there is no wallet."""
    key = wallet_id(WalletKey(person.user_id, "INR"))
    found = {bytes(row[0]): (bool(row[6]), row[8]) for row in await bank.rows(store.wallets)}
    return found.get(key)


async def learns(bank, person, *, active=True, version=1):
    async def learnt():
        return await known_of(bank, person) == (active, version)

    await eventually(learnt)


async def test_an_approval_opens_a_wallet_in_every_currency_and_a_suspension_closes_it(bank):
    person = Person(bank.first.channels, "USER")

    await publish(bank.redis, news_of(an_account(person.name)))
    await learns(bank, person)
    await publish(bank.redis, news_of(an_account(person.name, state=SUSPENDED, version=2)))
    await learns(bank, person, active=False, version=2)

    wallets = [wallet_key(row[0]) for row in await bank.rows(store.wallets)]
    assert wallets == [(person.user_id, "INR"), (person.user_id, "KES")]
    told = [
        (event.subject, event.wallet_changed.active, list(event.audience))
        for event in await bank.events()
    ]
    assert told == [
        (f"{person.name}/wallets/{code}", active, [person.name])
        for active in (True, False)
        for code in ("INR", "KES")
    ]


async def test_an_older_event_never_undoes_a_newer_one(bank):
    person = Person(bank.first.channels, "USER")
    other = Person(bank.first.channels, "USER")

    await publish(
        bank.redis,
        news_of(an_account(person.name, state=SUSPENDED, version=3)),
        news_of(an_account(person.name, version=2)),
        news_of(an_account(other.name)),
    )
    await learns(bank, other)

    assert await known_of(bank, person) == (False, 3)


async def test_an_answer_of_the_user_service_is_not_undone_by_the_event_before_it(bank):
    payer, vendor = Person(bank.first.channels, "USER"), await bank.a_vendor()
    waiting = an_account(payer.name, state=PENDING_APPROVAL, version=1)
    bank.user.knows(an_account(payer.name, version=2))
    assert (await payer.pay(vendor, 1_00)).state == FAILED  # for lack of money, no longer of rights

    await publish(bank.redis, news_of(waiting), news_of(an_account(vendor.name, version=2)))
    await learns(bank, vendor, version=2)

    assert await known_of(bank, payer) == (True, 2)


async def test_who_was_approved_a_moment_ago_can_pay_before_the_event_arrives(bank):
    payer, vendor = await bank.an_account(active=False), Person(bank.first.channels, "VENDOR")
    bank.user.knows(an_account(payer.name, version=2))
    bank.user.knows(an_account(vendor.name, role=VENDOR, version=2))
    await bank.admin.wallets.TopUp(a_top_up(payer, 10_00))  # asks as well

    payment = await payer.pay(vendor, 4_00)

    assert payment.state == SUCCESS
    assert bank.user.asked == [[payer.name], [vendor.name]]


async def test_everybody_who_asks_at_once_about_a_new_account_is_helped_by_one_question(bank):
    payer, vendor = await bank.a_payer(), Person(bank.first.channels, "VENDOR")
    bank.user.knows(an_account(vendor.name, role=VENDOR))
    bank.user.delay_seconds = 0.05

    payments = await asyncio.gather(*(payer.pay(vendor, 1_00) for _ in range(10)))

    assert {payment.state for payment in payments} == {SUCCESS}
    assert len(bank.user.asked) == 1


async def test_an_account_is_asked_about_once_a_second_at_most(bank):
    payer, nobody = await bank.a_payer(), Person(bank.first.channels, "VENDOR")

    for _ in range(5):
        assert (await refused(payer.pay(nobody))).reason == "VENDOR_NOT_FOUND"
    assert len(bank.user.asked) == 1
    bank.clock.advance(timedelta(seconds=1))
    await refused(payer.pay(nobody))

    assert len(bank.user.asked) == 2


async def test_what_the_user_service_does_not_know_or_say_is_refused_as_before(bank):
    payer, vendor = await bank.a_payer(), await bank.an_account(vendor=True, active=False)
    assert (await refused(payer.pay(vendor))).reason == "VENDOR_NOT_ACTIVE"

    async with bank.replica(user_address="127.0.0.1:1") as alone:
        assert (await refused(payer.at(alone).pay(vendor))).reason == "VENDOR_NOT_ACTIVE"


@pytest.mark.parametrize("state", [PENDING_APPROVAL, SUSPENDED, REJECTED])
async def test_only_an_active_account_pays_or_is_paid(bank, state):
    payer, vendor = await bank.a_payer(), await bank.a_vendor()
    await publish(
        bank.redis,
        news_of(an_account(payer.name, state=state, version=2)),
        news_of(an_account(vendor.name, role=VENDOR, state=state, version=2)),
    )
    await learns(bank, vendor, active=False, version=2)
    other = await bank.a_vendor(10_00)

    assert (await refused(payer.pay(other))).reason == "PAYER_NOT_ACTIVE"
    assert (await refused(other.pay(vendor))).reason == "VENDOR_NOT_ACTIVE"


async def test_a_change_of_an_account_that_changes_no_right_is_no_news_of_its_wallet(bank):
    person = await bank.an_account()
    before = len(await bank.events())
    wallet = await person.wallet()

    change = event_pb2.UserChanged.CHANGE_PASSWORD
    await publish(bank.redis, news_of(an_account(person.name, version=2), change))
    await learns(bank, person, version=2)

    assert len(await bank.events()) == before
    assert await person.wallet() == wallet


async def test_news_of_all_kinds_that_are_not_about_accounts_change_nothing(bank):
    payer = await bank.a_payer()
    key = event_pb2.SigningKeyRotated(key_id="k1")
    rotated = an_event("user", "signingKeys/k1", signing_key_rotated=key)
    before = await bank.records()

    await publish(bank.redis, rotated, an_event("user", payer.name))
    marker = Person(bank.first.channels, "USER")
    await publish(bank.redis, news_of(an_account(marker.name)))
    await learns(bank, marker)

    after = await bank.records()
    assert sum((after["wallets"] - before["wallets"]).values()) == 2  # the marker's
    assert after["transfers"] == before["transfers"]
