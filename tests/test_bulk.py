"""Rows that are written as text come back as the values they were, from both databases."""

import asyncio
import enum
import math
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError
from uuid_utils import UUID

from services import bulk, sql

metadata = sa.MetaData()
things = sa.Table(
    "things",
    metadata,
    sa.Column("thing_id", sql.Id, primary_key=True),
    sa.Column("time", sql.Instant),
    sa.Column("number", sa.BigInteger),
    sa.Column("share", sa.Double),
    # A word of SQL's own, as names may be.
    sa.Column("order", sa.String(200)),
    sa.Column("data", sql.blob()),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
INSTANTS = st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1)).map(  # noqa: DTZ001 - made aware here
    lambda found: found.replace(tzinfo=UTC)
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "thing_id": st.integers(0, 2**128 - 1).map(lambda number: UUID(int=number)),
            "time": st.none() | INSTANTS,
            "number": st.none() | st.integers(-(2**63), 2**63 - 1),
            "share": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "order": st.none()
            | TEXT
            | st.sampled_from(["\\", "'", '"', "\\'; --", "%s", "%", "\0"]),
            "data": st.none() | st.binary(max_size=100),
        }
    ),
    max_size=6,
    unique_by=lambda row: row["thing_id"],
)


@pytest.fixture
def runner():
    with asyncio.Runner() as running:
        yield running


@pytest.fixture
def engine(database_url, runner):
    made = sql.create_engine(database_url("payment"))

    async def create():
        async with made.begin() as connection:
            await connection.run_sync(metadata.create_all)

    runner.run(create())
    yield made
    runner.run(made.dispose())


async def written(engine, write, rows):
    """What a table holds once rows were written, by their ids."""
    async with engine.connect() as connection:
        await write(connection, things, rows)
        found = (await connection.execute(sa.select(things))).mappings().all()
        await connection.rollback()
    return {row["thing_id"]: dict(row) for row in found}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_what_is_inserted_is_what_is_read(engine, runner, rows):
    assert runner.run(written(engine, bulk.insert, rows)) == {row["thing_id"]: row for row in rows}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, new=ROWS)
def test_rows_that_exist_get_new_values(engine, runner, rows, new):
    changed = [
        {**after, "thing_id": before["thing_id"]} for before, after in zip(rows, new, strict=False)
    ]

    async def write(connection, table, rows):
        await bulk.insert(connection, table, rows)
        await bulk.upsert(connection, table, changed)

    found = runner.run(written(engine, write, rows))

    assert found == {row["thing_id"]: row for row in [*rows, *changed]}


def a_row(number, /, **changes):
    row = {"thing_id": UUID(int=number), "time": None, "number": 1, "share": 0.5, "order": "x"}
    return {**row, "data": b"", **changes}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, kept=st.sets(st.integers(0, 5)), stranger=st.integers(0, 2**128 - 1))
def test_rows_are_found_by_many_keys(engine, runner, rows, kept, stranger):
    wanted = [row["thing_id"] for place, row in enumerate(rows) if place in kept]
    asked = [*wanted, UUID(int=stranger)]
    given_later = sa.select(things.c.thing_id).where(bulk.among_given(things.c.thing_id, "ids"))
    numbers = [row["number"] for row in rows if row["number"] is not None]

    async def found():
        async with engine.connect() as connection:
            await bulk.insert(connection, things, rows)
            by_id = sa.select(things.c.thing_id).where(bulk.among(things.c.thing_id, asked))
            of_numbers = sa.select(things.c.number).where(bulk.among(things.c.number, numbers))
            answers = [
                set((await connection.execute(by_id)).scalars()),
                set((await connection.execute(given_later, {"ids": asked})).scalars()),
                set((await connection.execute(of_numbers)).scalars()),
            ]
            changed = sa.update(things).where(bulk.among(things.c.thing_id, wanted))
            changed_rows = (await connection.execute(changed.values(data=b"new"))).rowcount
            await connection.rollback()
        return answers, changed_rows

    there = set(wanted) | {row["thing_id"] for row in rows if row["thing_id"].int == stranger}
    assert runner.run(found()) == ([there, there, set(numbers)], len(wanted))


def test_more_rows_than_a_statement_holds(engine, runner):
    rows = [a_row(number) for number in range(1_200)]

    assert len(runner.run(written(engine, bulk.insert, rows))) == 1_200


def test_a_row_of_one_column(engine, runner):
    (row,) = runner.run(written(engine, bulk.insert, [{"thing_id": UUID(int=7)}])).values()

    assert row == a_row(7, number=None, share=None, order=None, data=None)


def test_a_taken_key_is_a_conflict(engine, runner):
    with pytest.raises(IntegrityError) as found:
        runner.run(written(engine, bulk.insert, [a_row(1), a_row(1)]))
    assert sql.is_conflict(found.value)


class Color(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize("value", [True, Color.RED, [1]])
def test_what_does_not_say_which_value_it_is_is_a_mistake(engine, runner, value):
    with pytest.raises(TypeError, match=r"no (literal|place|number)"):
        runner.run(written(engine, bulk.insert, [a_row(1, number=value)]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dialect", ["mariadb"])
def test_a_share_that_is_no_number_is_a_mistake(engine, runner, value):
    with pytest.raises(TypeError, match=r"no (literal|place|number)"):
        runner.run(written(engine, bulk.insert, [a_row(1, share=value)]))
