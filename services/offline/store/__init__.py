"""Rows in, domain values out. Decides nothing."""

from services.offline.store.tables import event_log, metadata

__all__ = ["event_log", "metadata"]
