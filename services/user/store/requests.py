"""First answers, by request id."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.user.store.tables import requests


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was answered before.

    Attributes:
        body_hash: SHA-256 of its body.
        answer: The serialized response.
    """

    body_hash: bytes
    answer: bytes


async def find_answer(connection: AsyncConnection, request_key: bytes) -> Answered | None:
    """What was answered to a request. None when it is new."""
    query = sa.select(requests).where(requests.c.request_key == request_key)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Answered(bytes(row.body_hash), bytes(row.answer))


async def save_answer(connection: AsyncConnection, request_key: bytes, value: Answered) -> None:
    """Store the first answer. An IntegrityError says the same request was answered meanwhile."""
    await connection.execute(
        sa.insert(requests),
        {"request_key": request_key, "body_hash": value.body_hash, "answer": value.answer},
    )
