"""Issues codes: a saga over this service's codes and payment's reservations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from protocol import code as protocol
from protocol import voucher as vouchers
from services import names, telemetry
from services.money import Money
from services.offline import events, wire
from services.offline.clients import Payment
from services.offline.domain import code as codes
from services.offline.domain import refusals
from services.offline.domain.code import Code, State
from services.offline.domain.terms import LIVE_CODES_MAX, Terms
from services.offline.events import Circumstances
from services.offline.keyring import KeyRing
from services.offline.recorder import Recorder
from services.offline.store import codes as store
from services.offline.store import issues as issue_store
from services.offline.store import rights as right_store
from services.offline.store.codes import Traces
from services.offline.store.issues import Issue
from services.refusal import Refusal
from services.rpc import refusals as access_refusals
from tallystick.offline.v1 import code_service_pb2 as pb

log = logging.getLogger(__name__)

_SHOWN = timedelta(minutes=15)
# Longer than a call to payment can be on its way: after it, no late copy of one can still set money aside.
_IN_FLIGHT = timedelta(seconds=60)
_SWEPT_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks for.

    Attributes:
        owner_id: The payer.
        request_id: As the caller wrote it.
        request_key: Who asked, under which id.
        body_hash: For what.
        values: What each code is to be worth, all in one currency.
        scope: The area.
        device_key: The payer's device; empty for typed codes only.
    """

    owner_id: UUID
    request_id: str
    request_key: bytes
    body_hash: bytes
    values: tuple[Money, ...]
    scope: str
    device_key: bytes


class Issuing:
    """The one place where codes come to be.

    It is a saga of three steps:

    1. one transaction puts the request and its codes on record, RESERVING, with the answer sealed;
    2. payment is asked to set the money aside, by a request that is always the same for the issue;
    3. one transaction makes the codes ISSUED; or, when payment has refused, ABANDONED.

    Whoever dies between the steps leaves codes RESERVING: the request repeated, or `sweep`, goes on from step 2.

    Args:
        recorder: Transactions.
        keys: What codes are made with.
        payment: Whom to ask.
        terms: What may be asked for.
        new_serial: A random number of 32 bits.
    """

    def __init__(
        self,
        recorder: Recorder,
        keys: KeyRing,
        payment: Payment,
        terms: Terms,
        *,
        new_serial: Callable[[], int],
    ) -> None:
        self._recorder = recorder
        self._keys = keys
        self._payment = payment
        self._terms = terms
        self._new_serial = new_serial

    async def issue(self, wish: Wish) -> pb.IssueCodesResponse:
        """Issue codes, or answer the same request again.

        Raises:
            Refusal: request_id_reused, codes_already_shown, offline_suspended, too_many_codes, offline_cap_exceeded,
                wallet_not_active, insufficient_funds, in this order.
            AioRpcError: payment does not answer; the same request goes on from here.
        """
        issue, made = await self._recorder.transact(lambda c: self._begin(c, wish))
        if not issue.reserved:
            await self._reserve(issue, made)
        if issue.sealed is None or self._recorder.now() >= issue.show_until:
            raise refusals.codes_already_shown(names.code_name(code.code_id) for code in made)
        return pb.IssueCodesResponse.FromString(self._keys.open(issue.sealed, _context(issue)))

    async def _begin(self, connection: AsyncConnection, wish: Wish) -> tuple[Issue, Sequence[Code]]:
        # Under the lock: before it, two copies of one request would both see none.
        right = await right_store.lock_right(connection, wish.owner_id)
        earlier = await issue_store.find_issue(connection, wish.request_key)
        if earlier is not None:
            if earlier.body_hash != wish.body_hash:
                raise refusals.request_id_reused(wish.request_id)
            return earlier, await store.codes_of_issue(connection, earlier.issue_id)
        live = await store.list_codes(connection, wish.owner_id, live=True, limit=LIVE_CODES_MAX)
        codes.check_room(live, wish.values, right, self._terms)
        return await self._make(connection, wish)

    async def _make(self, connection: AsyncConnection, wish: Wish) -> tuple[Issue, Sequence[Code]]:
        now = self._recorder.now()
        issue_id = self._recorder.new_id()
        made = [self._new_code(wish, issue_id, value) for value in wish.values]
        answer = pb.IssueCodesResponse(
            codes=[
                pb.IssuedCode(
                    code=wire.code_message(replace(code, state=State.ISSUED)),
                    symbols=protocol.pretty(symbols),
                    voucher=voucher,
                )
                for code, _, symbols, voucher in made
            ]
        )
        issue = Issue(
            issue_id=issue_id,
            request_key=wish.request_key,
            body_hash=wish.body_hash,
            owner_id=wish.owner_id,
            currency_code=wish.values[0].currency_code,
            sealed=self._keys.seal(answer.SerializeToString(), f"issue/{issue_id}"),
            show_until=now + _SHOWN,
            reserved=False,
        )
        await issue_store.insert_issue(connection, issue)
        await store.insert_codes(connection, [(code, traces) for code, traces, _, _ in made])
        return issue, [code for code, _, _, _ in made]

    def _new_code(
        self, wish: Wish, issue_id: UUID, value: Money
    ) -> tuple[Code, Traces, str, bytes]:
        now, keyset = self._recorder.now(), self._keys.newest
        key = self._keys.scope_key(keyset, wish.scope)
        day = protocol.expiry_day(now, keyset.epoch_time, self._terms.spend_days)
        record = protocol.make(
            self._new_serial(),
            keyset.number,
            self._terms.values.index(value.minor_units),
            day,
            key=key,
            issuer=self._terms.issuer,
            currency=value.currency_code,
        )
        symbols = record.symbols()
        expire_time = protocol.expire_time(keyset.epoch_time, day)
        code = Code(
            code_id=self._recorder.new_id(),
            issue_id=issue_id,
            owner_id=wish.owner_id,
            value=value,
            hint=symbols[:4],
            scope=wish.scope,
            state=State.RESERVING,
            release=codes.Release.NONE,
            issue_time=now,
            expire_time=expire_time,
            release_time=expire_time + self._terms.upload,
        )
        traces = Traces(
            code_hash=self._keys.code_hash(symbols),
            voucher_hash=self._keys.voucher_hash(record.keyset, record.serial),
            filter_key=protocol.filter_key(key, symbols).to_bytes(8, "big"),
        )
        return code, traces, symbols, self._voucher(wish, value, record)

    def _voucher(self, wish: Wish, value: Money, record: protocol.Code) -> bytes:
        if not wish.device_key:
            return b""
        (key_id,) = self._keys.issuer_keys
        said = vouchers.Voucher(
            issuer=self._terms.issuer,
            currency=value.currency_code,
            scope=wish.scope,
            serial=record.serial,
            keyset=record.keyset,
            tier=record.tier,
            expiry_day=record.expiry_day,
            minor_units=value.minor_units,
            device_key=wish.device_key,
            key_id=key_id,
        )
        return vouchers.issue(said, self._keys.issuer_key)

    async def _reserve(self, issue: Issue, made: Sequence[Code]) -> None:
        values = [(code.code_id, code.value) for code in made]
        try:
            await self._payment.reserve(issue.issue_id, issue.owner_id, values)
        except Refusal:
            await self._recorder.transact(lambda c: self._abandon(c, issue))
            raise
        await self._recorder.change(lambda c: self._complete(c, issue))

    async def _complete(self, connection: AsyncConnection, issue: Issue) -> None:
        known = await issue_store.lock_issue(connection, issue.issue_id)
        if known is None:
            # Another copy of this request was refused just before; the money that is set aside now goes back.
            raise access_refusals.dependency_unavailable("payment")
        if known.reserved:
            return
        found = await store.codes_of_issue(connection, issue.issue_id)
        locked = await store.lock_codes(connection, [code.code_id for code in found])
        # One that was revoked meanwhile stays so.
        waiting = [code for code in locked.values() if code.state is State.RESERVING]
        now = self._recorder.now()
        await issue_store.set_reserved(connection, issue.issue_id)
        if not waiting:
            return
        await store.set_state(connection, [code.code_id for code in waiting], State.ISSUED, now=now)
        fact = events.codes_issued(
            self._recorder.new_id(),
            Circumstances(names.user_name(issue.owner_id), now, telemetry.trace_id()),
            issue.owner_id,
            [replace(code, state=State.ISSUED) for code in waiting],
        )
        await self._recorder.record(connection, [fact])

    async def _abandon(self, connection: AsyncConnection, issue: Issue) -> None:
        known = await issue_store.lock_issue(connection, issue.issue_id)
        if known is None or known.reserved:
            return
        found = await store.codes_of_issue(connection, issue.issue_id)
        now = self._recorder.now()
        await issue_store.delete_issue(connection, issue.issue_id)
        # A copy of the call to payment may still be on its way and succeed: what it sets aside is given back after.
        await store.set_state(
            connection,
            [code.code_id for code in found],
            State.ABANDONED,
            now=now,
            release_time=now + _IN_FLIGHT,
        )

    async def sweep(self) -> None:
        """Go on with what is RESERVING; forget symbols that are shown no more.

        Raises:
            AioRpcError: payment does not answer.
        """
        now = self._recorder.now()
        async with self._recorder.reading() as connection:
            found = await issue_store.list_unreserved(connection, limit=_SWEPT_AT_ONCE)
            made = {
                issue.issue_id: await store.codes_of_issue(connection, issue.issue_id)
                for issue in found
            }
        for issue in found:
            if now >= issue.show_until:
                # Nobody was ever shown these codes, and nobody will be.
                await self._recorder.transact(lambda c, issue=issue: self._abandon(c, issue))  # type: ignore[misc]
            else:
                await self._go_on(issue, made[issue.issue_id])
        await self._recorder.transact(lambda c: issue_store.hide_symbols(c, now=now))

    async def _go_on(self, issue: Issue, made: Sequence[Code]) -> None:
        try:
            await self._reserve(issue, made)
        except Refusal as refusal:
            log.info(
                "codes abandoned", extra={"issue": str(issue.issue_id), "reason": refusal.reason}
            )


def _context(issue: Issue) -> str:
    return f"issue/{issue.issue_id}"
