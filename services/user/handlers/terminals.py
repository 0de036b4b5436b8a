"""The point-of-sale terminals of vendors."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol import keys
from services import names, paging, sql
from services.rpc import identity
from services.rpc import refusals as access_refusals
from services.rpc.revocations import Revocations
from services.rpc.server import Context
from services.user import events
from services.user.domain import refusals
from services.user.domain import terminal as terminals
from services.user.domain.terminal import State, Terminal
from services.user.events import Circumstances
from services.user.handlers import answers
from services.user.handlers.recorder import Recorder
from services.user.handlers.users import page_position
from services.user.messages import terminal_message
from services.user.store import requests as request_store
from services.user.store import terminals as terminal_store
from services.user.store import users as user_store
from services.user.store.requests import Answered
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import terminal_service_pb2 as pb
from tallystick.user.v1 import terminal_service_pb2_grpc

Change = event_pb2.TerminalChanged.Change


class TerminalService(terminal_service_pb2_grpc.TerminalServiceServicer):
    """TerminalService.

    Args:
        recorder: Transactions.
        revocations: What this replica refuses at once.
    """

    def __init__(self, recorder: Recorder, revocations: Revocations) -> None:
        self._recorder = recorder
        self._revocations = revocations

    async def EnrollTerminal(
        self, request: pb.EnrollTerminalRequest, context: Context
    ) -> pb.EnrollTerminalResponse:
        caller = identity.caller()
        key = answers.request_key(caller.user_id, request.request_id)
        body_hash = answers.body_hash(request)
        asked = request.terminal
        if keys.is_weak(asked.public_key):
            raise access_refusals.fields_invalid([("terminal.public_key", keys.WEAK)])

        async def work(connection: AsyncConnection) -> bytes:
            vendor = await user_store.lock_user(connection, caller.user_id)
            if vendor is None:
                raise access_refusals.unauthenticated()
            earlier = await request_store.find_answer(connection, key)
            if earlier is not None:
                if earlier.body_hash != body_hash:
                    raise refusals.request_id_reused(request.request_id)
                return earlier.answer
            site = None
            if names.owner_id(asked.site) == vendor.user_id:
                site_id = names.last_id(asked.site)
                site = await user_store.find_site(connection, vendor.user_id, site_id)
            terminals.check_may_enrol(
                vendor,
                site,
                asked.site,
                key_taken=await terminal_store.is_key_taken(connection, asked.public_key),
                enrolled=await terminal_store.count_enrolled(connection, vendor.user_id),
            )
            now = self._recorder.now()
            terminal = Terminal(
                vendor_id=vendor.user_id,
                terminal_id=self._recorder.new_id(),
                display_name=asked.display_name,
                site_id=names.last_id(asked.site),
                scope=asked.scope or terminals.DEFAULT_SCOPE,
                public_key=asked.public_key,
                state=State.ENROLLED,
                create_time=now,
            )
            await terminal_store.insert_terminal(connection, terminal)
            await self._record(
                connection, Circumstances(caller.subject, now), Change.CHANGE_ENROLLED, terminal
            )
            message = pb.EnrollTerminalResponse(terminal=terminal_message(terminal))
            answer = message.SerializeToString()
            await request_store.save_answer(connection, key, Answered(body_hash, answer))
            return answer

        return pb.EnrollTerminalResponse.FromString(await self._recorder.change(work))

    async def ListTerminals(
        self, request: pb.ListTerminalsRequest, context: Context
    ) -> pb.ListTerminalsResponse:
        caller = identity.caller()
        vendor_id = names.last_id(request.parent)
        if not caller.is_admin and caller.user_id != vendor_id:
            raise refusals.user_not_found(request.parent)
        query = ("terminals", request.parent)
        after = page_position(request.page_token, *query) if request.page_token else None
        size = paging.page_size(request.page_size)

        async def work(connection: AsyncConnection) -> list[Terminal]:
            if await user_store.find_user(connection, vendor_id) is None:
                raise refusals.user_not_found(request.parent)
            return await terminal_store.list_terminals(
                connection, vendor_id, after=after, limit=size + 1
            )

        found = await self._recorder.read(work)
        page = found[:size]
        return pb.ListTerminalsResponse(
            terminals=[terminal_message(terminal) for terminal in page],
            next_page_token=paging.issue(page[-1].terminal_id.bytes, *query)
            if len(found) > size
            else "",
        )

    async def RevokeTerminal(
        self, request: pb.RevokeTerminalRequest, context: Context
    ) -> pb.RevokeTerminalResponse:
        caller = identity.caller()
        vendor_id, terminal_id = names.owner_id(request.name), names.last_id(request.name)
        if not caller.is_admin and caller.user_id != vendor_id:
            raise refusals.terminal_not_found(request.name)

        async def work(connection: AsyncConnection) -> Terminal:
            # Enrolments and revocations of a vendor's terminals follow one another by the vendor's lock.
            await user_store.lock_user(connection, vendor_id)
            before = await terminal_store.find_terminal(connection, vendor_id, terminal_id)
            if before is None:
                raise refusals.terminal_not_found(request.name)
            now = self._recorder.now()
            terminal = terminals.revoke(before, request.reason, now=now)
            if terminal != before:
                circumstances = Circumstances(caller.subject, now)
                await terminal_store.update_terminal(connection, terminal)
                await self._record(connection, circumstances, Change.CHANGE_REVOKED, terminal)
                revoked = events.tokens_revoked(
                    self._recorder.new_id(),
                    circumstances,
                    terminal.name,
                    issued_before=terminals.tokens_end(now),
                )
                await self._recorder.record(connection, revoked)
            return terminal

        terminal = await self._recorder.change(work)
        assert terminal.revoke_time is not None
        refused_before = terminals.tokens_end(terminal.revoke_time)
        self._revocations.revoke(terminal.name, sql.micros(refused_before))
        return pb.RevokeTerminalResponse(terminal=terminal_message(terminal))

    async def BatchGetTerminals(
        self, request: pb.BatchGetTerminalsRequest, context: Context
    ) -> pb.BatchGetTerminalsResponse:
        keys = {(names.owner_id(name), names.last_id(name)) for name in request.names}
        found = await self._recorder.read(
            lambda connection: terminal_store.find_terminals(connection, keys)
        )
        return pb.BatchGetTerminalsResponse(terminals=map(terminal_message, found))

    async def _record(
        self,
        connection: AsyncConnection,
        circumstances: Circumstances,
        change: Change.ValueType,
        terminal: Terminal,
    ) -> None:
        event_id = self._recorder.new_id()
        fact = events.terminal_changed(event_id, circumstances, change, terminal)
        await self._recorder.record(connection, fact)
