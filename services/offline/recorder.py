"""Transactions of this service, and the facts they record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import event_log, sql
from services.offline import store
from tallystick.event.v1 import event_pb2

T = TypeVar("T")


class Recorder:
    """Runs transactions and has what they recorded published at once.

    Args:
        engine: The service's database.
        relay: Publishes the event log.
        now: UTC.
        new_id: A fresh UUIDv7.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        relay: event_log.Relay,
        *,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._engine = engine
        self._relay = relay
        self.now = now
        self.new_id = new_id

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction that only reads."""
        return sql.reading(self._engine)

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run a transaction that records no facts; it is run again, whole, when it loses a conflict."""
        return await sql.transact(self._engine, work)

    async def change(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """As `transact`, for one that records facts."""
        result = await sql.transact(self._engine, work)
        self.tell()
        return result

    def tell(self) -> None:
        """Have what was recorded published at once, after a `transact` that did record something."""
        self._relay.wake()

    async def record(self, connection: AsyncConnection, facts: Sequence[event_pb2.Event]) -> None:
        """Write facts in the transaction that made them true."""
        await event_log.append(connection, store.event_log, facts)
