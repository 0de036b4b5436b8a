"""What migrations make is what the stores use, for every service that has a store, on both databases."""

from __future__ import annotations

import asyncio
import importlib

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from cli import databases
from services import sql


async def described(url):
    """Every table with its columns, keys, indexes, checks and options, as the database has them."""

    def describe(connection):
        look = sa.inspect(connection)
        return {
            name: {
                "columns": {
                    each["name"]: (
                        str(each["type"].compile(connection.dialect)),
                        each["nullable"],
                        each["default"],
                        each.get("autoincrement"),
                    )
                    for each in look.get_columns(name)
                },
                "primary key": look.get_pk_constraint(name)["constrained_columns"],
                "indexes": {
                    each["name"]: (each["column_names"], bool(each["unique"]))
                    for each in look.get_indexes(name)
                },
                "unique": sorted(
                    (each["name"] or "", each["column_names"])
                    for each in look.get_unique_constraints(name)
                ),
                "checks": {
                    each["name"]: " ".join(each["sqltext"].lower().split())
                    for each in look.get_check_constraints(name)
                },
                "foreign keys": [
                    (each["constrained_columns"], each["referred_table"], each["referred_columns"])
                    for each in look.get_foreign_keys(name)
                ],
                "options": look.get_table_options(name),
            }
            for name in look.get_table_names()
            if name != "alembic_version"
        }

    engine = sql.create_engine(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(describe)
    finally:
        await engine.dispose()


async def made_from(metadata, url):
    await sql.ensure_database(url)
    engine = sql.create_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
    finally:
        await engine.dispose()


@pytest.mark.parametrize("service", databases.OWNERS)
async def test_migrations_make_exactly_the_tables_the_store_uses(service, database_url, tmp_path):
    store = importlib.import_module(f"services.{service}.store")
    migrated = database_url(service)
    other = make_url(migrated)
    if other.get_backend_name() == "sqlite":
        other = other.set(database=str(tmp_path / "from-metadata.db"))
    else:
        other = other.set(database=f"{other.database}_metadata")
    url = other.render_as_string(hide_password=False)
    await made_from(store.metadata, url)

    tables = await described(migrated)

    assert set(tables) == set(store.metadata.tables)
    assert tables == await described(url)


@pytest.mark.parametrize("service", databases.OWNERS)
async def test_migrating_again_changes_nothing(service, database_url):
    url = database_url(service)
    before = await described(url)

    await asyncio.to_thread(asyncio.run, sql.migrate(url, service))

    assert await described(url) == before


def test_every_service_with_a_store_has_its_database():
    with_store = {
        path.parent.name
        for pattern in ("*/store.py", "*/store")
        for path in (sql.MIGRATIONS.parents[1] / "services").glob(pattern)
    }

    assert with_store == set(databases.OWNERS)
    assert {path.name for path in sql.MIGRATIONS.iterdir() if path.is_dir()} - {
        "__pycache__"
    } == with_store
