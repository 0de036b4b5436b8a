"""Comparing the schema that migrations made with the tables a store uses."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from services import sql


async def differences(database_url, metadata):
    """What Alembic would change to turn the one into the other; nothing when they agree."""

    def compare(connection):
        options = {
            "compare_type": True,
            "include_name": lambda name, kind, _: (kind, name) != ("table", "alembic_version"),
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    engine = sql.create_engine(database_url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(compare)
    finally:
        await engine.dispose()
