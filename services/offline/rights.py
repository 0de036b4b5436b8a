"""Changes of somebody's right to spend offline, and what they do to live codes."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import times
from services.offline import events
from services.offline.domain import code as codes
from services.offline.domain import right as rights
from services.offline.domain.right import Level, Mark, Right, Source
from services.offline.domain.terms import Terms
from services.offline.events import PLATFORM, Circumstances
from services.offline.recorder import Recorder
from services.offline.store import codes as code_store
from services.offline.store import rights as store
from tallystick.event.v1 import event_pb2


class Rights:
    """Sets rights, whoever says so.

    Args:
        recorder: Transactions.
        terms: The caps.
    """

    def __init__(self, recorder: Recorder, terms: Terms) -> None:
        self._recorder = recorder
        self._terms = terms

    async def put(
        self, owner_id: UUID, source: Source, mark: Mark, circumstances: Circumstances
    ) -> Right:
        """Set what one source says."""

        async def work(connection: AsyncConnection) -> Right:
            return await self.put_in(connection, owner_id, source, mark, circumstances)

        return await self._recorder.change(work)

    async def put_in(
        self,
        connection: AsyncConnection,
        owner_id: UUID,
        source: Source,
        mark: Mark,
        circumstances: Circumstances,
    ) -> Right:
        """As `put`, in the caller's transaction. A right that becomes SUSPENDED revokes the live codes at once."""
        before = await store.lock_right(connection, owner_id)
        after = rights.put(before, source, mark, now=circumstances.time)
        await self._record(connection, before, after, circumstances)
        return after

    async def _record(
        self,
        connection: AsyncConnection,
        before: Right,
        after: Right,
        circumstances: Circumstances,
    ) -> None:
        if after == before:
            return
        await store.update_right(connection, after)
        if after.update_time == before.update_time:
            return  # the same was said again, later
        facts = [events.right_changed(self._recorder.new_id(), circumstances, after, self._terms)]
        if after.level is Level.SUSPENDED and before.level is not Level.SUSPENDED:
            facts += await self._revoke_all(connection, after, circumstances)
        await self._recorder.record(connection, facts)

    async def _revoke_all(
        self, connection: AsyncConnection, right: Right, circumstances: Circumstances
    ) -> list[event_pb2.Event]:
        now = circumstances.time
        live = await code_store.lock_spendable(connection, right.owner_id)
        stopped = [codes.revoke(code, now=now) for code in live if now < code.release_time]
        if not stopped:
            return []
        await code_store.set_state(
            connection,
            [code.code_id for code in stopped],
            codes.State.REVOKED,
            now=now,
            revoke_time=now,
        )
        return [
            events.codes_ended(
                self._recorder.new_id(), circumstances, right.owner_id, stopped, right.reason
            )
        ]

    async def apply(self, event: event_pb2.Event) -> None:
        """Take over what the fraud service says. An event may come twice, and after a newer one."""
        said = events.fraud_mark(event)
        if said is None:
            return
        owner_id, mark = said
        say_time = times.instant(event.occur_time)
        circumstances = Circumstances(PLATFORM, self._recorder.now(), event.trace_id)

        async def work(connection: AsyncConnection) -> None:
            before = await store.lock_right(connection, owner_id)
            after = rights.hear(before, mark, say_time=say_time, now=circumstances.time)
            await self._record(connection, before, after, circumstances)

        await self._recorder.change(work)
