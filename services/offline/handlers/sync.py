"""TerminalSyncService: trust bundles out, journals in, results back."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import names, paging
from services.offline import wire
from services.offline.directory import Directory
from services.offline.domain import refusals
from services.offline.domain.item import State
from services.offline.domain.terminal import Terminal
from services.offline.handlers.request import body_hash, request_key
from services.offline.intake import Intake, Upload, counted, move_count
from services.offline.recorder import Recorder
from services.offline.store import journals
from services.offline.store.journals import Batch
from services.offline.trust import Trust
from services.rpc import refusals as access_refusals
from services.rpc.identity import Caller, caller
from services.rpc.server import Context
from services.streams import Feed
from tallystick.offline.v1 import offline_pb2, terminal_sync_service_pb2_grpc
from tallystick.offline.v1 import terminal_sync_service_pb2 as pb

_SEQUENCE_BYTES = 8
_POSITION_BYTES = 40


class TerminalSyncService(terminal_sync_service_pb2_grpc.TerminalSyncServiceServicer):
    """Serves offline.v1.TerminalSyncService.

    Args:
        recorder: Transactions.
        directory: Knows terminals.
        trust: Makes bundles.
        intake: Takes uploads.
        feed: This service's own events, live.
    """

    def __init__(
        self,
        recorder: Recorder,
        directory: Directory,
        trust: Trust,
        intake: Intake,
        feed: Feed,
    ) -> None:
        self._recorder = recorder
        self._directory = directory
        self._trust = trust
        self._intake = intake
        self._feed = feed

    async def GetTrustBundle(
        self, request: pb.GetTrustBundleRequest, context: Context
    ) -> pb.GetTrustBundleResponse:
        terminal = await self._terminal("")
        if terminal.revoke_time is not None:
            raise refusals.terminal_revoked(terminal.name)
        return pb.GetTrustBundleResponse(bundle=await self._trust.bundle(terminal))

    async def GetJournalHead(
        self, request: pb.GetJournalHeadRequest, context: Context
    ) -> pb.GetJournalHeadResponse:
        terminal = await self._terminal(request.terminal)
        return pb.GetJournalHeadResponse(sequence=terminal.head_sequence, hash=terminal.head_hash)

    async def SubmitBatch(
        self, request: pb.SubmitBatchRequest, context: Context
    ) -> pb.SubmitBatchResponse:
        terminal = await self._terminal(request.terminal)
        upload = Upload(
            terminal=terminal,
            actor=caller().subject,
            request_id=request.request_id,
            request_key=request_key(terminal.terminal_id, request.request_id),
            body_hash=body_hash(request),
            entries=request.entries,
        )
        return await self._intake.take(upload)

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> pb.GetBatchResponse:
        async with self._recorder.reading() as connection:
            batch = await _batch(connection, request.name)
            found = await journals.find_items(connection, batch.item_ids)
        # Counted from the very items: another statement could see them a moment later.
        return pb.GetBatchResponse(
            batch=counted(batch, Counter(entry.state for entry in found)),
            items=[wire.item_message(entry) for entry in found],
        )

    async def WatchBatch(
        self, request: pb.WatchBatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchBatchResponse]:
        async with self._recorder.reading() as connection:
            batch = await _batch(connection, request.name)
        states = dict.fromkeys(map(names.item_name, batch.item_ids), State.RECEIVED)
        message = offline_pb2.Batch()
        async for cursor, told in self._feed.watch_subjects(request.cursor, states.keys()):
            if told:
                # Nothing else is told of an item.
                items = [event.item_decided.item for event in told]
                for item in items:
                    state = State(item.state)
                    move_count(message, states[item.name], state)
                    states[item.name] = state
            else:
                # One statement sees them all at one moment; most are seldom decided by now, and not read.
                async with self._recorder.reading() as connection:
                    decided = await journals.find_decided(connection, batch.item_ids)
                items = [wire.item_message(entry) for entry in decided]
                states.update((item.name, State(item.state)) for item in items)
                message = counted(batch, Counter(states.values()))
                # Who resumes gets the rest as it comes; and everything again, if meanwhile there is nothing to come.
                if request.cursor and message.received_count:
                    items = []
            yield pb.WatchBatchResponse(items=items, batch=message, cursor=cursor)
            if not message.received_count:
                return

    async def ListItems(
        self, request: pb.ListItemsRequest, context: Context
    ) -> pb.ListItemsResponse:
        size = paging.page_size(request.page_size)
        if "/terminals/" in request.parent:
            return await self._items_of_terminal(request, size)
        who = caller()
        vendor_id = names.last_id(request.parent)
        if not (who.is_admin or who.subject == request.parent):
            raise refusals.terminal_not_found(request.parent)
        token = request.page_token
        before = paging.redeem_id(token, request.parent) if token else None
        async with self._recorder.reading() as connection:
            found = await journals.list_vendor_items(
                connection, vendor_id, before=before, limit=size + 1
            )
        page = found[:size]
        more = len(found) > size
        return pb.ListItemsResponse(
            items=[wire.item_message(entry) for entry in page],
            next_page_token=paging.issue(page[-1].entry_id.bytes, request.parent) if more else "",
        )

    async def _items_of_terminal(
        self, request: pb.ListItemsRequest, size: int
    ) -> pb.ListItemsResponse:
        terminal = await self._terminal(request.parent)
        before = None
        if request.page_token:
            position = paging.redeem(request.page_token, request.parent)
            if len(position) != _POSITION_BYTES:
                raise access_refusals.page_token_invalid()
            sequence = int.from_bytes(position[:_SEQUENCE_BYTES], "big")
            before = (sequence, position[_SEQUENCE_BYTES:])
        async with self._recorder.reading() as connection:
            found = await journals.list_terminal_items(
                connection, terminal.terminal_id, before=before, limit=size + 1
            )
        page = found[:size]
        token = ""
        if len(found) > size:
            last = page[-1]
            position = last.sequence.to_bytes(_SEQUENCE_BYTES, "big") + last.content_hash
            token = paging.issue(position, request.parent)
        return pb.ListItemsResponse(
            items=[wire.item_message(entry) for entry in page], next_page_token=token
        )

    async def _terminal(self, asked: str) -> Terminal:
        """The terminal a call is about: the caller's own, or one of the calling vendor's.

        Raises:
            Refusal: terminal_not_found.
        """
        who = caller()
        name = asked or (who.subject if who.is_terminal else "")
        if not name or not _may_see(who, names.owner_id(name), names.last_id(name)):
            raise refusals.terminal_not_found(name)
        terminal = await self._directory.find(name)
        if terminal is None:
            raise refusals.terminal_not_found(name)
        return terminal


def _may_see(who: Caller, vendor_id: UUID, terminal_id: UUID) -> bool:
    if who.is_admin:
        return True
    if who.is_terminal:
        return who.subject == names.terminal_name(vendor_id, terminal_id)
    return who.subject == names.user_name(vendor_id)


async def _batch(connection: AsyncConnection, name: str) -> Batch:
    """A batch the caller may see.

    Raises:
        Refusal: batch_not_found.
    """
    batch = await journals.find_batch(connection, names.last_id(name))
    if batch is None or not _may_see(caller(), batch.vendor_id, batch.terminal_id):
        raise refusals.batch_not_found(name)
    return batch
