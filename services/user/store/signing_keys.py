"""Signing keys."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.user.domain.signing_key import SigningKey
from services.user.store.tables import signing_keys


async def list_keys(connection: AsyncConnection) -> list[SigningKey]:
    """Every key on record, oldest first."""
    query = sa.select(signing_keys).order_by(signing_keys.c.number)
    return [
        SigningKey(
            row.key_id,
            row.number,
            row.public_jwk,
            bytes(row.sealed_private_key),
            row.create_time,
            row.sign_time,
        )
        for row in await connection.execute(query)
    ]


async def insert_key(connection: AsyncConnection, key: SigningKey) -> None:
    """Put a key on record. An IntegrityError says another replica was first."""
    await connection.execute(
        sa.insert(signing_keys),
        {
            "number": key.number,
            "key_id": key.key_id,
            "public_jwk": key.public_jwk,
            "sealed_private_key": key.sealed_private_key,
            "create_time": key.create_time,
            "sign_time": key.sign_time,
        },
    )


async def delete_keys(connection: AsyncConnection, numbers: Iterable[int]) -> None:
    """Forget keys that verify nothing any more."""
    await connection.execute(
        sa.delete(signing_keys).where(signing_keys.c.number.in_(list(numbers)))
    )
