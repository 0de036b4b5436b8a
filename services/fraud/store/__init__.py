"""The fraud service's tables and queries; a module for each thing kept."""

from services.fraud.store.sites import (
    lock_cursor,
    read_cursor,
    read_vendors,
    save_cursor,
    save_vendors,
)
from services.fraud.store.tables import event_log, metadata
from services.fraud.store.tiers import read_tiers, save_tiers

__all__ = [
    "event_log",
    "lock_cursor",
    "metadata",
    "read_cursor",
    "read_tiers",
    "read_vendors",
    "save_cursor",
    "save_tiers",
    "save_vendors",
]
