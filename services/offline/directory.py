"""Terminals and vendors, kept in step with the user service."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import names
from services.offline import events
from services.offline.clients import Users
from services.offline.domain.terminal import Terminal
from services.offline.recorder import Recorder
from services.offline.store import terminals as store
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import user_pb2


def is_news(event: event_pb2.Event) -> bool:
    """Whether an event of the user service is about a terminal or a vendor."""
    fact = event.WhichOneof("fact")
    if fact == "user_changed":
        return event.user_changed.user.role == access_pb2.ROLE_VENDOR
    return fact == "terminal_changed"


class Directory:
    """Applies the user service's events; asks it directly for what has not arrived yet.

    Args:
        recorder: Transactions.
        users: Whom to ask.
    """

    def __init__(self, recorder: Recorder, users: Users) -> None:
        self._recorder = recorder
        self._users = users

    async def apply(self, event: event_pb2.Event) -> None:
        """Take over a change of a terminal or a vendor. An older one than known changes nothing."""
        if event.WhichOneof("fact") == "terminal_changed":
            await self._put_terminal(events.terminal(event.terminal_changed.terminal))
        else:
            await self._put_vendor(event.user_changed.user)

    async def find(self, name: str) -> Terminal | None:
        """A terminal by its name, with its vendor on record; None when there is none.

        Raises:
            AioRpcError: it is not known here, and the user service does not answer.
        """
        terminal_id, vendor_id = names.last_id(name), names.owner_id(name)
        terminal, knows_vendor = await self._look(terminal_id, vendor_id)
        if terminal is None:
            described = await self._users.terminal(name)
            if described is None:
                return None
            await self._put_terminal(described)
        if not knows_vendor:
            vendor = await self._users.vendor(vendor_id)
            if vendor is not None:
                await self._put_vendor(vendor)
        if terminal is None:
            terminal, _ = await self._look(terminal_id, vendor_id)
        # The id alone is not the name: it says whose terminal it is, too.
        return terminal if terminal is not None and terminal.vendor_id == vendor_id else None

    async def _look(self, terminal_id: UUID, vendor_id: UUID) -> tuple[Terminal | None, bool]:
        async with self._recorder.reading() as connection:
            terminals = await store.find_terminals(connection, [terminal_id])
            vendors = await store.active_vendors(connection, [vendor_id])
        return terminals.get(terminal_id), vendor_id in vendors

    async def _put_terminal(self, terminal: Terminal) -> None:
        async def work(connection: AsyncConnection) -> None:
            known = await store.lock_terminal(connection, terminal.terminal_id)
            if known is None:
                await store.insert_terminal(connection, terminal)
            elif terminal.version > known.version:
                await store.describe_terminal(connection, terminal)

        await self._recorder.transact(work)

    async def _put_vendor(self, user: user_pb2.User) -> None:
        async def work(connection: AsyncConnection) -> None:
            await store.put_vendor(
                connection,
                names.last_id(user.name),
                active=user.state == user_pb2.User.STATE_ACTIVE,
                version=user.version,
            )

        await self._recorder.transact(work)
