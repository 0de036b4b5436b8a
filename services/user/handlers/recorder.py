"""Transactions, and the facts they record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import event_log, sql
from services.user import events, store
from services.user.domain.user import User
from services.user.events import Circumstances
from services.user.store import users as user_store
from tallystick.event.v1 import event_pb2

T = TypeVar("T")


class Recorder:
    """Runs a handler's transactions and has what they recorded published at once.

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

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Answer from one snapshot of the database, waiting for no lock."""
        async with sql.reading(self._engine, snapshot=True) as connection:
            return await work(connection)

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run a transaction that records no facts; it is run again, whole, when it loses a conflict."""
        return await sql.transact(self._engine, work)

    async def change(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """As `transact`, for one that records facts."""
        result = await sql.transact(self._engine, work)
        self._relay.wake()
        return result

    async def record(self, connection: AsyncConnection, *facts: event_pb2.Event) -> None:
        """Write facts in the transaction that made them true."""
        await event_log.append(connection, store.event_log, facts)

    async def user_changed(
        self,
        connection: AsyncConnection,
        circumstances: Circumstances,
        change: events.Change.ValueType,
        user: User,
    ) -> event_pb2.Event:
        """The fact that an account changed, with all its sites."""
        sites = await user_store.list_sites(connection, user.user_id)
        return events.user_changed(self.new_id(), circumstances, change, user, sites)
