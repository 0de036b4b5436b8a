"""The benchmark of offline items: a short run, and books that see what is wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from uuid_utils import UUID

from bench import summary
from bench.offline import Paid, differences, wrong_balances
from bench.seed import MONEY_EACH
from bench.tills import CODE_VALUE, CODES_EACH, Code
from services.payment.domain.ledger import Bucket
from services.payment.domain.payment import State
from tallystick.offline.v1 import offline_pb2
from tallystick.type.v1 import money_pb2
from tests.test_bench_online import bench

ASHA, BABU, SHOP = (UUID(int=number) for number in range(101, 104))
SETTLED, HELD, REFUSED = (
    offline_pb2.Item.STATE_SETTLED,
    offline_pb2.Item.STATE_HELD,
    offline_pb2.Item.STATE_REFUSED,
)
ASIDE = CODE_VALUE * CODES_EACH


def an_item(name="items/1", state=SETTLED, payment="payments/1", reason=1):
    amount = money_pb2.Money(minor_units=CODE_VALUE, currency_code="INR")
    return offline_pb2.Item(name=name, state=state, payment=payment, reason=reason, amount=amount)


def a_till(*items, codes=None):
    return SimpleNamespace(
        vendor_id=SHOP,
        codes=codes or {"items/1": Code(ASHA, "0" * 16)},
        items={item.name: item for item in items},
    )


def paid(state=State.SUCCESS, payer=ASHA):
    return Paid(payer, SHOP, CODE_VALUE, state)


@pytest.mark.parametrize(("state", "stored"), [(SETTLED, State.SUCCESS), (HELD, State.FLAGGED)])
def test_books_match_when_every_item_has_its_payment(state, stored):
    assert differences({"payments/1": paid(stored)}, [a_till(an_item(state=state))]) == []


@pytest.mark.parametrize(
    ("stored", "till", "wrong"),
    [
        ({}, a_till(an_item()), "stored None"),
        ({"payments/1": paid(State.FLAGGED)}, a_till(an_item()), "stored"),
        ({"payments/1": paid(payer=BABU)}, a_till(an_item()), "stored"),
        ({}, a_till(), "never told of"),
        ({}, a_till(an_item(state=REFUSED, payment="", reason=18)), "DUPLICATE_CODE"),
        (
            {"payments/1": paid(), "payments/2": paid()},
            a_till(an_item()),
            "payments/2: stored, and told to nobody",
        ),
    ],
)
def test_books_do_not_match_when(stored, till, wrong):
    (found,) = differences(stored, [till])

    assert wrong in found


def test_two_items_cannot_have_one_payment():
    codes = {name: Code(ASHA, "0" * 16) for name in ("items/1", "items/2")}
    till = a_till(an_item(), an_item("items/2"), codes=codes)

    (found,) = differences({"payments/1": paid()}, [till])

    assert "another item's" in found


@pytest.mark.parametrize(
    ("state", "asha", "shop"),
    [
        (SETTLED, (ASIDE - CODE_VALUE, 0), CODE_VALUE),
        (HELD, (ASIDE - CODE_VALUE, CODE_VALUE), 0),
        (REFUSED, (ASIDE, 0), 0),
    ],
)
def test_balances_are_what_items_make_them(state, asha, shop):
    def wallet(online, reserved=0, held=0):
        return {
            Bucket.ONLINE: online,
            Bucket.OFFLINE: 0,
            Bucket.RESERVED: reserved,
            Bucket.HELD: held,
        }

    balances = {ASHA: wallet(MONEY_EACH - ASIDE, *asha), SHOP: wallet(shop)}
    till = a_till(an_item(state=state))

    assert wrong_balances(balances, [till], [ASHA]) == []
    (found,) = wrong_balances(balances | {SHOP: wallet(shop + 1)}, [till], [ASHA])
    assert str(SHOP) in found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run_settles_everything_and_its_books_match(tmp_path):
    file = tmp_path / "offline.json"

    done = bench(
        *("offline", "--profile", "dev", "--items", "200", "--json", file),
        *("--plots", tmp_path),
        seconds=280,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["books_match"] is True
    assert found["backlog"]["reasons"] == {"SETTLED": 1_000}
    assert found["terminals"]["reasons"] == {"SETTLED": 200}
    assert found["items_settled_per_second"] > 0
    assert found["backlog_1000_seconds"] == found["backlog"]["seconds"] > 0
    assert set(found["laws"].values()) == {True}
    assert {"offline", "payment", "client"} <= set(found["terminals"]["cpu_us_per_item"])
    assert (tmp_path / "offline-cost.svg").exists()
    assert "| one terminal | 1,000 |" in summary.markdown(tmp_path)
