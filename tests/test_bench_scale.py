"""A ledger made by the million: what is made is a ledger, and the benchmark knows every balance of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from uuid_utils import UUID, uuid4

from bench import books, population, queries, summary
from bench.population import AMOUNT, Population
from bench.seed import CURRENCY, MONEY_EACH
from services import sql
from services.payment import audit, store
from services.payment.domain.ledger import WalletKey
from tests.test_bench_online import bench

pytestmark = pytest.mark.parametrize("dialect", ["mariadb"])

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def people(payments_each=3):
    vendors = [UUID(int=1000 + number) for number in range(6)]
    return Population(wallets=100, few=10, payments_each=payments_each, vendors=vendors, now=NOW)


@pytest.fixture
async def engine(database_url):
    engine = sql.create_engine(database_url("payment"))
    yield engine
    await engine.dispose()


async def filled(engine, made):
    async with engine.begin() as connection:
        rows = [
            {
                **dict.fromkeys(("online", "offline", "reserved", "held", "is_system"), 0),
                "wallet_id": store.wallet_id(WalletKey(vendor, CURRENCY)),
                "active": 1,
                "is_vendor": 1,
                "owner_version": 2,
                "update_time": NOW,
            }
            for vendor in made.vendors
        ]
        await connection.execute(sa.insert(store.wallets), rows)
    await made.add_few(engine)
    await made.add_others(engine)
    if made.payments_each:
        await made.add_payments(engine)


async def test_what_is_made_keeps_every_law_that_does_not_need_events(engine):
    made = people()
    await filled(engine, made)

    findings = await audit.check(engine)

    broken = {number for number, finding in findings.items() if not finding.holds}
    assert broken == {7}, {number: findings[number].first_broken for number in broken}
    assert findings[4].checked >= 300 + 100
    assert findings[8].checked == 300


@pytest.mark.parametrize("payments_each", [0, 1, 4])
async def test_the_opening_balances_are_what_is_stored(engine, payments_each):
    made = people(payments_each)
    await filled(engine, made)

    opening = made.opening(paid=bool(payments_each))

    assert await books.online_balances(engine, list(opening)) == opening
    assert len(opening) == 10 + 6
    assert await population.changed(engine, MONEY_EACH - AMOUNT * payments_each) == 0
    assert await population.changed(engine, 1) == 100


async def test_ids_are_the_same_in_python_and_in_the_database_and_grow(engine):
    made = people()
    await filled(engine, made)

    async with sql.reading(engine) as connection:
        ids = sa.select(store.payments.c.payment_id).order_by(store.payments.c.payment_id)
        stored = list((await connection.execute(ids)).scalars())

    assert stored == [made.payment(number) for number in range(300)]
    assert {found.version for found in stored} == {7}
    assert made.owners_of_few() == [made.owner(number) for number in range(0, 100, 10)]


async def test_indexes_are_there_again(engine):
    async with engine.connect() as connection:
        before = await connection.run_sync(_indexes)
    await filled(engine, people())

    async with engine.connect() as connection:
        assert await connection.run_sync(_indexes) == before


def _indexes(connection):
    inspector = sa.inspect(connection)
    return {
        table.name: sorted(
            (found["name"], found["column_names"]) for found in inspector.get_indexes(table.name)
        )
        for table in store.metadata.sorted_tables
    }


async def test_queries_examine_no_more_rows_than_a_page_needs(engine):
    made = people(30)
    await filled(engine, made)

    found = await queries.costs(
        engine, payer=made.owner(0), vendor=made.vendors[0], before=made.payment(1_500)
    )

    assert found["payments of the hot vendor, newest page"]["rows_examined"] in range(51, 110)
    assert found["payments of the hot vendor, a page deep inside"]["rows_examined"] in range(
        51, 110
    )
    assert found["wallet"]["rows_examined"] == 1
    assert found["payment by request"]["rows_examined"] <= 1


async def test_a_query_that_reads_a_whole_table_is_told_of(engine):
    await filled(engine, people())

    whole, one = await queries.plans(
        engine,
        {
            "SELECT SUM(amount) FROM payments": (),
            "SELECT amount FROM payments WHERE payment_id = %s": (uuid4().bytes,),
        },
    )

    assert whole["reads_whole_table"]
    assert whole["steps"][0]["table"] == "payments"
    assert not one["reads_whole_table"]


async def test_the_audit_reads_payments_by_their_key(engine):
    await filled(engine, people())

    asked = await queries.plans(engine, await queries.statements_of_audit(engine))

    batches = [one for one in asked if "LIMIT" in one["statement"] or one["steps"][0]["key"]]
    assert batches
    assert all(one["statement"].startswith("SELECT") for one in asked)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_small_run_measures_everything_and_its_books_match(tmp_path, dialect):
    file = tmp_path / "scale.json"

    done = bench(
        *("scale", "--rate", "50", "--seconds", "1", "--wallets", "20000", "--payments", "20000"),
        *("--soak", "3", "--json", file, "--plots", tmp_path),
        seconds=380,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["books_match"] is True
    assert [(one["wallets"], one["payments"]) for one in found["sizes"]] == [
        (10_000, 0),
        (20_000, 0),
        (20_000, 20_000),
    ]
    assert all(one["statuses"] == {"OK": 50} for one in found["sizes"])
    assert found["p95_ratio"] > 0
    assert [(one["payment_processes"], one["hot_share"]) for one in found["replicas"]] == [
        (1, 0.2),
        (1, 1.0),
        (2, 0.2),
        (2, 1.0),
    ]
    assert found["soak"]["memory_mib"]["payment"]["last"] > 10
    assert "scale-cost.svg" in {path.name for path in tmp_path.iterdir()}
    assert found["bytes_per_payment"]["payments"] > 100
    assert "20,000 wallets, 20,000 payments" in summary.markdown(tmp_path)
