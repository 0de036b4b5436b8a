"""What an audit finds, and what one service's audit may ask another one's books."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from uuid_utils import UUID


@dataclass(frozen=True, slots=True)
class Finding:
    """What the check of one law found.

    Attributes:
        law: Its number and words.
        checked: How many rows or accounts it looked at.
        first_broken: The first that breaks it, and how; None when it holds.
    """

    law: str
    checked: int
    first_broken: str | None

    @property
    def holds(self) -> bool:
        """Nothing breaks it."""
        return self.first_broken is None


class BackingState(enum.Enum):
    """Where the money behind a code is."""

    LIVE = "live"
    SETTLED = "settled"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Backing:
    """The money behind a code, as the ledger has it.

    Attributes:
        reservation_id: Also the code's id.
        minor_units: How much was set aside.
        state: Where it is.
        payment_id: What settled it; None while nothing has.
    """

    reservation_id: UUID
    minor_units: int
    state: BackingState
    payment_id: UUID | None


class Ledger(Protocol):
    """The ledger's reservations, for whoever knows codes."""

    async def backings(self, reservation_ids: Collection[UUID]) -> list[Backing]:
        """Those of some reservations that exist."""

    async def backings_after(self, reservation_id: UUID, limit: int) -> list[Backing]:
        """Reservations with greater ids than one, in the order of ids."""
