"""Holds codes against the ledger's reservations: what both sides of laws 5, 6 and 9 say must agree.

The two databases are read one after the other while both go on. What looks wrong is looked at again: what was only on
its way has arrived by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import names, sql
from services.audit_finding import Backing, BackingState, Finding, Ledger
from services.offline.domain.code import Release
from services.offline.domain.code import State as CodeState
from services.offline.domain.item import Reason
from services.offline.domain.item import State as ItemState
from services.offline.store.tables import codes, entries, spends

_ROWS_AT_ONCE = 2_000
_LOOKS = 3
_FIRST = UUID(int=0)
_SPENT_ONCE = (
    "5. One code settles at most once: a spent code has its one payment, and a payment its code."
)
_BACKED = (
    "6. Reserved = value of live codes: every live code is backed by its reservation, and no other."
)
_IN_TIME = "9. No sale that arrived in time was refused because its money had gone."


async def check(
    engine: AsyncEngine, ledger: Ledger, *, pause: Callable[[], Awaitable[None]]
) -> dict[int, Finding]:
    """Check every law that only both services' books together can show broken; by law number.

    Args:
        engine: This service's database.
        ledger: The other books.
        pause: Waits between two looks at what seems wrong.
    """
    count, suspects = await _suspects(engine, ledger)
    broken: dict[UUID, tuple[int, str]] = {}
    for look in range(_LOOKS):
        if not suspects:
            break
        if look:
            await pause()
        broken = await _look(engine, ledger, suspects)
        suspects = set(broken)
    # Of each law, the first.
    first = dict(sorted(broken.values(), reverse=True))
    return {
        5: Finding(_SPENT_ONCE, count, first.get(5)),
        6: Finding(_BACKED, count, first.get(6)),
        9: await _in_time(engine),
    }


async def _suspects(engine: AsyncEngine, ledger: Ledger) -> tuple[int, set[UUID]]:
    """How many codes and reservations there are, and which of them do not agree at first sight."""
    suspects: set[UUID] = set()
    seen: set[UUID] = set()
    after, count = _FIRST, 0
    while True:
        async with sql.reading(engine) as connection:
            query = sa.select(codes.c.code_id).where(codes.c.code_id > after)
            query = query.order_by(codes.c.code_id).limit(_ROWS_AT_ONCE)
            page = list((await connection.execute(query)).scalars())
        if not page:
            break
        suspects |= (await _look(engine, ledger, page)).keys()
        seen.update(page)
        count += len(page)
        after = page[-1]
    after = _FIRST
    while backings := await ledger.backings_after(after, _ROWS_AT_ONCE):
        # What was released for a code that nobody was ever shown has no code any more.
        suspects |= {
            backing.reservation_id
            for backing in backings
            if backing.reservation_id not in seen and backing.state is not BackingState.RELEASED
        }
        count += sum(backing.reservation_id not in seen for backing in backings)
        after = backings[-1].reservation_id
    return count, suspects


async def _look(
    engine: AsyncEngine, ledger: Ledger, ids: Collection[UUID]
) -> dict[UUID, tuple[int, str]]:
    """Of some codes and reservations, those that do not agree: the law they break, and how."""
    async with sql.reading(engine) as connection:
        rows = await _rows(connection, ids)
    backings = {each.reservation_id: each for each in await ledger.backings(ids)}
    found: dict[UUID, tuple[int, str]] = {}
    for each in ids:
        broken = _disagree(each, rows.get(each), backings.get(each))
        if broken is not None:
            found[each] = broken
    return found


async def _rows(connection: AsyncConnection, ids: Iterable[UUID]) -> Mapping[UUID, Any]:
    joined = codes.outerjoin(spends, spends.c.code_id == codes.c.code_id).outerjoin(
        entries, entries.c.entry_id == spends.c.entry_id
    )
    query = (
        sa.select(
            codes.c.code_id,
            codes.c.state,
            codes.c.release_step,
            codes.c.minor_units,
            spends.c.entry_id,
            entries.c.state.label("item_state"),
            entries.c.reason,
        )
        .select_from(joined)
        .where(codes.c.code_id.in_(list(ids)))
    )
    return {row.code_id: row for row in await connection.execute(query)}


def _disagree(code_id: UUID, row: Any, backing: Backing | None) -> tuple[int, str] | None:
    name = names.code_name(code_id)
    if row is None:
        if backing is None or backing.state is BackingState.RELEASED:
            return None
        return 6, f"{names.reservation_name(code_id)}: {backing.state.name}, and there is no code"
    state, release = CodeState(row.state), Release(row.release_step)
    if (row.entry_id is not None) is not (state is CodeState.SPENT):
        return 5, f"{name}: {state.name}, and {'an item' if row.entry_id else 'no item'} spent it"
    if state is CodeState.SPENT:
        return _spent_otherwise(name, row, backing)
    # Payment has yet to answer, or has answered and that is not on record yet.
    if state in {CodeState.ABANDONED, CodeState.RESERVING}:
        return None
    if backing is None:
        return 6, f"{name}: {state.name}, and nothing was ever reserved for it"
    if backing.minor_units != row.minor_units:
        return 6, f"{name}: worth {row.minor_units}, {backing.minor_units} are reserved"
    right = {
        Release.NONE: {BackingState.LIVE},
        Release.DUE: {BackingState.LIVE, BackingState.RELEASED},
        Release.DONE: {BackingState.RELEASED},
    }[release]
    if backing.state not in right:
        return 6, f"{name}: {state.name}, release {release.name}, its money is {backing.state.name}"
    return None


def _spent_otherwise(name: str, row: Any, backing: Backing | None) -> tuple[int, str] | None:
    payment = names.payment_name(row.entry_id)
    if row.item_state == ItemState.RECEIVED and (
        backing is not None and backing.state is BackingState.LIVE
    ):
        return None
    if row.reason == Reason.PAYMENT_REFUSED:
        return 5, f"{name}: spent by {payment}, which the ledger refused"
    if backing is None or backing.payment_id != row.entry_id:
        settled = "nothing" if backing is None else f"payments/{backing.payment_id}"
        return 5, f"{name}: spent by {payment}, its money by {settled}"
    return None


async def _in_time(engine: AsyncEngine) -> Finding:
    after, count = _FIRST, 0
    columns = (
        entries.c.entry_id,
        entries.c.item_id,
        entries.c.reason,
        entries.c.proof_hash,
        entries.c.receive_time,
    )
    while True:
        # A page at a time by their key: an index for the audit alone would be paid for by every item there is.
        query = sa.select(*columns).where(entries.c.entry_id > after)
        async with sql.reading(engine) as connection:
            page = (
                await connection.execute(query.order_by(entries.c.entry_id).limit(_ROWS_AT_ONCE))
            ).all()
            late = [row for row in page if row.reason == Reason.LATE_UPLOAD and row.proof_hash]
            windows = await _windows(connection, {bytes(row.proof_hash) for row in late})
        count += sum(row.item_id is not None for row in page)
        for row in late:
            release_time = windows.get(bytes(row.proof_hash))
            if release_time is not None and row.receive_time < release_time:
                broken = f"{names.item_name(row.item_id)}: arrived in time and was refused as late"
                return Finding(_IN_TIME, count, broken)
        if len(page) < _ROWS_AT_ONCE:
            return Finding(_IN_TIME, count, None)
        after = page[-1].entry_id


async def _windows(connection: AsyncConnection, hashes: Collection[bytes]) -> dict[bytes, datetime]:
    """When the upload window of codes and vouchers ended, by what an item looks them up by."""
    found: dict[bytes, datetime] = {}
    for column in (codes.c.code_hash, codes.c.voucher_hash) if hashes else ():
        query = sa.select(column, codes.c.release_time).where(column.in_(list(hashes)))
        found.update((bytes(each), time) for each, time in await connection.execute(query))
    return found
