"""CodeService: codes, rights, terms and keysets."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from protocol import keys
from protocol.code import DEFAULT_SCOPE
from services import names, paging, telemetry, times
from services.money import Money
from services.offline import events, wire
from services.offline.domain import code as codes
from services.offline.domain import refusals
from services.offline.domain.code import Code, State
from services.offline.domain.double_spend import DoubleSpend
from services.offline.domain.item import Entry
from services.offline.domain.right import Level, Mark, Source
from services.offline.domain.terms import LIVE_CODES_MAX, Terms
from services.offline.events import Circumstances
from services.offline.handlers.request import body_hash, request_key
from services.offline.issuing import Issuing, Wish
from services.offline.keyring import KeyRing
from services.offline.recorder import Recorder
from services.offline.rights import Rights
from services.offline.store import codes as store
from services.offline.store import double_spends as double_spend_store
from services.offline.store import journals
from services.offline.store import rights as right_store
from services.rpc import refusals as access_refusals
from services.rpc.identity import caller
from services.rpc.server import Context
from tallystick.offline.v1 import code_service_pb2 as pb
from tallystick.offline.v1 import code_service_pb2_grpc, offline_pb2
from tallystick.offline.v1.terminal_sync_service_pb2 import SubmitBatchRequest


class CodeService(code_service_pb2_grpc.CodeServiceServicer):
    """Serves offline.v1.CodeService.

    Args:
        recorder: Transactions.
        issuing: Makes codes.
        rights: Sets rights.
        keys: Keysets, and what journals are sealed with.
        terms: What this deployment issues.
    """

    def __init__(
        self,
        recorder: Recorder,
        issuing: Issuing,
        rights: Rights,
        keys: KeyRing,
        terms: Terms,
    ) -> None:
        self._recorder = recorder
        self._issuing = issuing
        self._rights = rights
        self._keys = keys
        self._terms = terms

    async def IssueCodes(
        self, request: pb.IssueCodesRequest, context: Context
    ) -> pb.IssueCodesResponse:
        terms, owner_id = self._terms, caller().user_id
        if request.currency_code not in terms.currencies:
            raise refusals.currency_unsupported(request.currency_code, terms.currencies)
        if request.device_public_key and keys.is_weak(request.device_public_key):
            raise access_refusals.fields_invalid([("device_public_key", keys.WEAK)])
        scope = request.scope or DEFAULT_SCOPE
        if scope not in terms.scopes:
            raise refusals.scope_unknown(scope, terms.scopes)
        values = tuple(Money(value, request.currency_code) for value in request.values)
        for value in values:
            if value.minor_units not in terms.values:
                raise refusals.value_not_offered(value, terms.values)
        return await self._issuing.issue(
            Wish(
                owner_id=owner_id,
                request_id=request.request_id,
                request_key=request_key(owner_id, request.request_id),
                body_hash=body_hash(request),
                values=values,
                scope=scope,
                device_key=request.device_public_key,
            )
        )

    async def ListCodes(
        self, request: pb.ListCodesRequest, context: Context
    ) -> pb.ListCodesResponse:
        owner_id = _owner(request.parent)
        query = (owner_id, request.live)
        before = paging.redeem_id(request.page_token, *query) if request.page_token else None
        size = paging.page_size(request.page_size)
        async with self._recorder.reading() as connection:
            found = await store.list_codes(
                connection, owner_id, live=request.live, before=before, limit=size + 1
            )
            page = found[:size]
            messages = await _messages(connection, page)
        token = paging.issue(page[-1].code_id.bytes, *query) if len(found) > size else ""
        return pb.ListCodesResponse(codes=messages, next_page_token=token)

    async def RevokeCodes(
        self, request: pb.RevokeCodesRequest, context: Context
    ) -> pb.RevokeCodesResponse:
        owner_id = caller().user_id
        circumstances = self._circumstances()

        async def work(connection: AsyncConnection) -> list[offline_pb2.Code]:
            # Whoever issues, suspends or revokes takes this lock first, so nobody waits in a circle.
            await right_store.lock_right(connection, owner_id)
            ids = [names.last_id(name) for name in request.names]
            known = await store.lock_codes(connection, ids)
            before = [known.get(code_id) for code_id in ids]
            for name, code in zip(request.names, before, strict=True):
                if code is None or code.owner_id != owner_id or code.state is State.ABANDONED:
                    raise refusals.code_not_found(name)
            mine = [code for code in before if code is not None]
            after = [codes.revoke(code, now=circumstances.time) for code in mine]
            stopped = [new for old, new in zip(mine, after, strict=True) if old != new]
            if stopped:
                await store.set_state(
                    connection,
                    [code.code_id for code in stopped],
                    State.REVOKED,
                    now=circumstances.time,
                    revoke_time=circumstances.time,
                )
                fact = events.codes_ended(
                    self._recorder.new_id(), circumstances, owner_id, stopped, request.reason
                )
                await self._recorder.record(connection, [fact])
            return [wire.code_message(code) for code in after]

        return pb.RevokeCodesResponse(codes=await self._recorder.change(work))

    async def GetOfflineTerms(
        self, request: pb.GetOfflineTermsRequest, context: Context
    ) -> pb.GetOfflineTermsResponse:
        terms = self._terms
        return pb.GetOfflineTermsResponse(
            issuer=terms.issuer,
            tiers=wire.tiers(terms),
            scopes=sorted(terms.scopes),
            caps=[wire.money(cap) for cap in terms.moneys(terms.cap)],
            live_codes_max=LIVE_CODES_MAX,
            spend_days=terms.spend_days,
            upload_hours=terms.upload_hours,
            liabilities=wire.liabilities(),
        )

    async def GetOfflineRight(
        self, request: pb.GetOfflineRightRequest, context: Context
    ) -> pb.GetOfflineRightResponse:
        owner_id = _owner(request.owner)
        async with self._recorder.reading() as connection:
            right = await right_store.find_right(connection, owner_id)
        return pb.GetOfflineRightResponse(right=wire.right_message(right, self._terms))

    async def SetOfflineRight(
        self, request: pb.SetOfflineRightRequest, context: Context
    ) -> pb.SetOfflineRightResponse:
        right = await self._rights.put(
            names.last_id(request.owner),
            Source.ADMIN,
            Mark(Level(request.level), request.reason),
            self._circumstances(),
        )
        return pb.SetOfflineRightResponse(right=wire.right_message(right, self._terms))

    async def ListDoubleSpends(
        self, request: pb.ListDoubleSpendsRequest, context: Context
    ) -> pb.ListDoubleSpendsResponse:
        before = paging.redeem_id(request.page_token) if request.page_token else None
        size = paging.page_size(request.page_size)
        async with self._recorder.reading() as connection:
            found = await double_spend_store.list_double_spends(
                connection, before=before, limit=size + 1
            )
            page = found[:size]
            messages = await self._evidence(connection, page)
        token = paging.issue(page[-1].double_spend_id.bytes) if len(found) > size else ""
        return pb.ListDoubleSpendsResponse(double_spends=messages, next_page_token=token)

    async def _evidence(
        self, connection: AsyncConnection, page: Sequence[DoubleSpend]
    ) -> list[offline_pb2.DoubleSpend]:
        ids = {each for found in page for each in (found.first_entry, found.second_entry)}
        entries = {entry.entry_id: entry for entry in await journals.find_entries(connection, ids)}
        opened: dict[UUID, SubmitBatchRequest] = {}
        for entry in entries.values():
            if entry.batch_id not in opened:
                batch = await journals.find_batch(connection, entry.batch_id)
                assert batch is not None
                plain = self._keys.open(batch.sealed_entries, f"batch/{batch.batch_id}")
                opened[entry.batch_id] = SubmitBatchRequest.FromString(plain)

        def signed(entry: Entry) -> bytes:
            return opened[entry.batch_id].entries[entry.place].SerializeToString()

        messages = []
        for found in page:
            both = [entries[found.first_entry], entries[found.second_entry]]
            message = wire.double_spend_message(found, *both)
            message.entries.extend(signed(entry) for entry in both)
            messages.append(message)
        return messages

    async def RotateKeyset(
        self, request: pb.RotateKeysetRequest, context: Context
    ) -> pb.RotateKeysetResponse:
        keyset = await self._keys.rotate()
        return pb.RotateKeysetResponse(
            keyset=keyset.number, epoch_time=times.timestamp(keyset.epoch_time)
        )

    def _circumstances(self) -> Circumstances:
        return Circumstances(caller().subject, self._recorder.now(), telemetry.trace_id())


def _owner(name: str) -> UUID:
    """Whose codes or right somebody asks for.

    Raises:
        Refusal: owner_not_found, for somebody else's.
    """
    who = caller()
    if not (who.is_admin or who.service or who.subject == name):
        raise refusals.owner_not_found(name)
    return names.last_id(name)


async def _messages(connection: AsyncConnection, found: Sequence[Code]) -> list[offline_pb2.Code]:
    spent = [code.code_id for code in found if code.state is State.SPENT]
    spenders = await store.spenders(connection, spent) if spent else {}
    return [wire.code_message(code, spenders.get(code.code_id)) for code in found]
