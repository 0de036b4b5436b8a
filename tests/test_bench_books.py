"""The benchmark's books: what clients were told against what is stored."""

from __future__ import annotations

import aiosqlite
import pytest
from uuid_utils import UUID, uuid7

from bench import books
from bench.books import Paid, Told, differences, wrong_balances
from bench.load import Outcome
from bench.seed import MONEY_EACH, World, payers_needed
from services.payment.domain.payment import State
from tests.payment_stack import a_payment

ASHA, BABU, SHOP = (UUID(int=number) for number in range(101, 104))
PAID = Paid(ASHA, SHOP, 5_00, State.SUCCESS)
WORLD = World([ASHA, BABU], ["a", "b"], [(f"users/{SHOP}", 0.0, 0.0)])


def told(**payments):
    return Told(payments=payments)


def test_books_match_when_every_client_was_told_what_is_stored():
    failed = PAID._replace(state=State.FAILED)

    found = differences([("a", PAID), ("b", failed)], Told({"a": PAID, "b": failed}, refused={"c"}))

    assert found == []


@pytest.mark.parametrize(
    ("stored", "heard", "wrong"),
    [
        ([], told(a=PAID), "stored nothing"),
        ([("a", PAID._replace(state=State.FAILED))], told(a=PAID), "stored FAILED of 500"),
        ([("a", PAID._replace(amount=1))], told(a=PAID), "stored SUCCESS of 1"),
        ([("a", PAID._replace(payer=BABU))], told(a=PAID), f"from {BABU}"),
        ([("a", PAID._replace(vendor=BABU))], told(a=PAID), f"to {BABU}"),
        ([("a", PAID), ("a", PAID)], told(a=PAID), "stored 2 times"),
        ([("a", PAID)], told(), "never sent"),
        ([("a", PAID)], Told(refused={"a"}), "refused, stored"),
        ([("a", PAID)], Told(unknown={"a": PAID._replace(amount=7)}), "asked nothing of 7"),
        ([], told(a=PAID._replace(state=State.PENDING)), "which is no outcome"),
        ([], told(a=PAID._replace(state=0)), "told nothing, which is no outcome"),
    ],
)
def test_books_do_not_match_when(stored, heard, wrong):
    if heard.unknown:
        heard.unknown["a"] = heard.unknown["a"]._replace(state=0)

    (found,) = differences(stored, heard)

    assert wrong in found


def test_a_payment_whose_client_cannot_know_may_be_stored_or_not():
    heard = Told(unknown={"a": PAID._replace(state=0), "b": PAID._replace(state=0)})

    assert differences([("a", PAID)], heard) == []


@pytest.mark.parametrize(
    ("state", "balances"),
    [
        (State.SUCCESS, {ASHA: (MONEY_EACH - 500, 0), SHOP: (500, 0)}),
        (State.FLAGGED, {ASHA: (MONEY_EACH - 500, 500), SHOP: (0, 0)}),
        (State.FAILED, {ASHA: (MONEY_EACH, 0), SHOP: (0, 0)}),
    ],
)
def test_balances_are_what_payments_make_them(state, balances):
    settled = [PAID._replace(state=state)]
    everybody = balances | {BABU: (MONEY_EACH, 0)}

    assert wrong_balances(everybody, settled, WORLD.began_with()) == []
    off_by_one = everybody | {SHOP: (balances[SHOP][0] + 1, 0)}
    (found,) = wrong_balances(off_by_one, settled, WORLD.began_with())
    assert str(SHOP) in found


@pytest.mark.parametrize(
    ("status", "where"),
    [
        (0, "payments"),
        (8, "refused"),
        (3, "refused"),
        (14, "unknown"),
        (4, "unknown"),
        (-1, "unknown"),
    ],
)
def test_what_a_status_means_for_the_books(status, where):
    state = State.SUCCESS if status == 0 else 0
    outcome = Outcome(
        request_ids=["a"], payers=[1], vendors=[0], amounts=[7], statuses=[status], states=[state]
    )

    found = Told.by([outcome], WORLD)

    assert {name: list(given) for name, given in vars(found).items() if given} == {where: ["a"]}
    if where != "refused":
        assert getattr(found, where)["a"] == Paid(BABU, SHOP, 7, state)


async def test_the_books_of_a_ledger_that_was_paid_in_match(bank, database_url):
    payers = [await bank.a_payer(MONEY_EACH) for _ in range(3)]
    vendor = await bank.a_vendor()
    heard = Told()
    for number, payer in enumerate(payers, 1):
        request = a_payment(vendor, number)
        await payer.payments.CreatePayment(request)
        paid = Paid(payer.user_id, vendor.user_id, number, State.SUCCESS)
        heard.payments[request.request_id] = paid
    world = World([payer.user_id for payer in payers], [], [(vendor.name, 0.0, 0.0)])
    url = bank.settings.database_url

    found = await books.check(url, heard, world)

    assert found.wrong == []
    assert found.states == {"SUCCESS": 3}
    assert found.group_sizes(heard.payments) == {1: 3}
    assert set(found.laws.values()) == {True}

    first = next(iter(heard.payments))
    heard.payments[first] = heard.payments[first]._replace(amount=99)
    lied_to = await books.check(url, heard, world)
    assert not lied_to.match
    assert lied_to.wrong_count == 3, "the payment, its payer's balance, its vendor's"


async def test_a_law_that_is_broken_is_found_in_the_books(sqlite_url):
    url = sqlite_url("payment")
    async with aiosqlite.connect(url.removeprefix("sqlite+aiosqlite:///")) as connection:
        out_of_nothing = (bytes(16) + b"INR", 5, 0, 0, 0, 1, 1, 0, 0, 0)
        await connection.execute("INSERT INTO wallets VALUES (?,?,?,?,?,?,?,?,?,?)", out_of_nothing)
        await connection.commit()

    found = await books.check(url, Told(), World([], [], []))

    assert not found.match
    assert "law 1: INR: all balances sum to 5" in found.wrong
    assert found.laws[1] is False


@pytest.mark.parametrize(
    ("rate", "seconds", "payers"),
    [(1_000, 60, 6_000), (1_000, 600, 6_600), (50, 3, 15), (1, 1, 1), (100, 10, 100)],
)
def test_there_are_as_many_payers_as_the_limit_of_ten_a_minute_asks_for(rate, seconds, payers):
    assert payers_needed(rate, seconds) == payers


def test_a_payer_who_pays_in_turn_never_meets_the_limit():
    rate, seconds = 1_000, 600
    between = payers_needed(rate, seconds) / rate

    assert between > 6.0, "seconds between two payments of one payer; a token returns every 6"


async def test_a_ledger_that_was_filled_before_is_checked_from_there_on(bank, database_url):
    payer, vendor = await bank.a_payer(MONEY_EACH), await bank.a_vendor()
    await payer.payments.CreatePayment(a_payment(vendor, 300))
    since = uuid7()
    request = a_payment(vendor, 200)
    await payer.payments.CreatePayment(request)
    heard = Told()
    heard.payments[request.request_id] = Paid(payer.user_id, vendor.user_id, 200, State.SUCCESS)
    opening = {payer.user_id: MONEY_EACH - 300, vendor.user_id: 300}
    world = World([payer.user_id], [], [(vendor.name, 0.0, 0.0)], opening)
    url = bank.settings.database_url

    found = await books.check(url, heard, world, since=since)

    assert found.wrong == []
    assert found.laws == {1: True, 2: True}
    assert found.states == {"SUCCESS": 1}
    opening[vendor.user_id] = 0
    (wrong,) = (await books.check(url, heard, world, since=since)).wrong
    assert str(vendor.user_id) in wrong
