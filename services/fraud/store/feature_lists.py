"""Every list of features that payments were ever judged on."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.fraud.domain.feature_lists import from_text, to_text
from services.fraud.features.spec import Feature
from services.fraud.store.tables import feature_lists


async def find(connection: AsyncConnection, version: str) -> tuple[Feature, ...] | None:
    """The list of a version; None when it is not on record."""
    query = sa.select(feature_lists.c.features).where(feature_lists.c.version == version)
    kept = (await connection.execute(query)).scalar_one_or_none()
    return None if kept is None else from_text(bytes(kept).decode())


async def insert(connection: AsyncConnection, version: str, features: Sequence[Feature]) -> None:
    """Put a list on record."""
    await connection.execute(
        sa.insert(feature_lists), {"version": version, "features": to_text(features).encode()}
    )
