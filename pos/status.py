"""A terminal at a glance, and what a sync brought."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum

from pos.decision import Terms
from pos.journal import JournalFlaw, Sale


class Network(Enum):
    """What the screen says."""

    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"
    MUST_SYNC = "MUST_SYNC"


@dataclass(frozen=True, slots=True)
class Status:
    """A terminal at a glance.

    Attributes:
        network: ONLINE when the last try reached the platform.
        since_sync: Since the newest trust bundle was made; None before the first.
        stored_count: Sales that the platform does not have.
        stored: Their minor units, by currency.
        terms: Of the bundle in force; None before the first.
        flaws: What is wrong with the journal.
        locked_for: How long no code is looked at; None when codes are.
    """

    network: Network
    since_sync: timedelta | None
    stored_count: int
    stored: Mapping[str, int]
    terms: Terms | None
    flaws: tuple[JournalFlaw, ...]
    locked_for: timedelta | None


@dataclass
class Report:
    """What a sync did.

    Attributes:
        uploaded: Entries that the platform took for the first time in it.
        items: Sales whose results it brought, as they are now.
    """

    uploaded: int = 0
    items: list[Sale] = field(default_factory=list)


Progress = Callable[[str, Sale | None], None]
