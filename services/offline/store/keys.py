"""The issuer's secrets and keysets."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.offline.domain.keyset import Keyset
from services.offline.store.tables import keysets, secrets


async def read_secrets(connection: AsyncConnection) -> dict[str, bytes]:
    """Every secret by its name, sealed."""
    rows = await connection.execute(sa.select(secrets))
    return {row.name: bytes(row.sealed) for row in rows}


async def insert_secret(connection: AsyncConnection, name: str, sealed: bytes) -> None:
    """Put a secret on record.

    Raises:
        IntegrityError: another replica was first.
    """
    await connection.execute(sa.insert(secrets), {"name": name, "sealed": sealed})


async def read_keysets(connection: AsyncConnection) -> list[Keyset]:
    """All keysets, oldest first."""
    query = sa.select(keysets).order_by(keysets.c.generation)
    return [
        Keyset(row.generation, row.epoch_time, bytes(row.sealed_key), row.create_time)
        for row in await connection.execute(query)
    ]


async def insert_keyset(connection: AsyncConnection, keyset: Keyset) -> None:
    """Put a keyset on record.

    Raises:
        IntegrityError: another replica was first.
    """
    await connection.execute(
        sa.insert(keysets),
        {
            "generation": keyset.generation,
            "epoch_time": keyset.epoch_time,
            "sealed_key": keyset.sealed_key,
            "create_time": keyset.create_time,
        },
    )
