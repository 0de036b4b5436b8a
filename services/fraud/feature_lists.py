"""The lists of features that kept assessments rest on: today's, and those of earlier releases."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services import sql
from services.fraud.features.spec import FEATURES, FEATURES_VERSION, Feature
from services.fraud.store import feature_lists


class FeatureLists:
    """Knows which numbers an assessment was kept with.

    Args:
        engine: The fraud service's database.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._known: dict[str, Sequence[Feature]] = {FEATURES_VERSION: FEATURES}

    async def load(self) -> None:
        """Put today's list on record for those who come after; call it before serving."""

        async def work(connection: AsyncConnection) -> None:
            if await feature_lists.find(connection, FEATURES_VERSION) is None:
                await feature_lists.insert(connection, FEATURES_VERSION, FEATURES)

        await sql.transact(self._engine, work)

    async def find(self, version: str) -> Sequence[Feature] | None:
        """The list of a version, also a newer one of a replica that is ahead; None when nobody knows."""
        if version not in self._known and version:
            async with sql.reading(self._engine) as connection:
                found = await feature_lists.find(connection, version)
            if found is None:
                return None
            self._known[version] = found
        return self._known.get(version)
