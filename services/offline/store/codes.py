"""Codes, and what spent them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import bulk
from services.money import Money
from services.offline.domain.code import Code, Release, State
from services.offline.domain.item import Entry, Proof
from services.offline.store.tables import codes, spends

_RELEASABLE = (int(State.ABANDONED), int(State.ISSUED), int(State.REVOKED))
_SPENDABLE = (int(State.RESERVING), int(State.ISSUED))


@dataclass(frozen=True, slots=True)
class Traces:
    """What is kept of a code's symbols: nothing they could be found from without the keys."""

    code_hash: bytes
    voucher_hash: bytes
    filter_key: bytes


async def insert_codes(connection: AsyncConnection, made: Sequence[tuple[Code, Traces]]) -> None:
    """Put new codes on record.

    Raises:
        IntegrityError: a serial is in use already.
    """
    rows = [
        {
            "code_id": code.code_id,
            "issue_id": code.issue_id,
            "owner_id": code.owner_id,
            "currency_code": code.value.currency_code,
            "minor_units": code.value.minor_units,
            "hint": code.hint,
            "scope": code.scope,
            "code_hash": traces.code_hash,
            "voucher_hash": traces.voucher_hash,
            "filter_key": traces.filter_key,
            "state": int(code.state),
            "release_step": int(code.release),
            "issue_time": code.issue_time,
            "expire_time": code.expire_time,
            "release_time": code.release_time,
            "revoke_time": code.revoke_time,
            "update_time": code.issue_time,
        }
        for code, traces in made
    ]
    await bulk.insert(connection, codes, rows)


def _select(*more: Any) -> sa.Select[Any]:
    # Not joined with spends: MariaDB cannot lock one table of a join.
    return sa.select(
        codes.c.code_id,
        codes.c.issue_id,
        codes.c.owner_id,
        codes.c.currency_code,
        codes.c.minor_units,
        codes.c.hint,
        codes.c.scope,
        codes.c.state,
        codes.c.release_step,
        codes.c.issue_time,
        codes.c.expire_time,
        codes.c.release_time,
        codes.c.revoke_time,
        *more,
    )


async def list_codes(
    connection: AsyncConnection,
    owner_id: UUID,
    *,
    live: bool,
    before: UUID | None = None,
    limit: int,
) -> list[Code]:
    """Somebody's codes, newest first, older than the code `before`; only live ones where asked."""
    query = (
        _select()
        .where(codes.c.owner_id == owner_id, codes.c.state != int(State.ABANDONED))
        .order_by(codes.c.code_id.desc())
        .limit(limit)
    )
    if live:
        query = query.where(
            codes.c.state.in_([*_SPENDABLE, int(State.REVOKED)]),
            codes.c.release_step == int(Release.NONE),
        )
    if before is not None:
        query = query.where(codes.c.code_id < before)
    return [_code(row) for row in await connection.execute(query)]


async def codes_of_issue(connection: AsyncConnection, issue_id: UUID) -> list[Code]:
    """The codes a request made, in the order asked."""
    query = _select().where(codes.c.issue_id == issue_id).order_by(codes.c.code_id)
    return [_code(row) for row in await connection.execute(query)]


async def lock_codes(connection: AsyncConnection, code_ids: Collection[UUID]) -> dict[UUID, Code]:
    """Codes by id, held until the transaction ends."""
    query = _select().where(bulk.among(codes.c.code_id, code_ids)).order_by(codes.c.code_id)
    return {row.code_id: _code(row) for row in await connection.execute(query.with_for_update())}


async def lock_spendable(connection: AsyncConnection, owner_id: UUID) -> list[Code]:
    """Somebody's codes that may be spent, or may be in a moment; held until the transaction ends."""
    query = (
        _select()
        .where(codes.c.owner_id == owner_id, codes.c.state.in_(_SPENDABLE))
        .order_by(codes.c.code_id)
    )
    return [_code(row) for row in await connection.execute(query.with_for_update())]


async def lock_by_proof(
    connection: AsyncConnection, proof: Proof, hashes: Collection[bytes]
) -> dict[bytes, Code]:
    """Codes by the hash of their symbols, or of their voucher; held until the transaction ends."""
    if not hashes:
        return {}
    column = codes.c.code_hash if proof is Proof.CODE else codes.c.voucher_hash
    query = _select(column.label("proof_hash")).where(bulk.among(column, sorted(hashes)))
    rows = await connection.execute(query.order_by(column).with_for_update())
    return {bytes(row.proof_hash): _code(row) for row in rows}


async def spenders(
    connection: AsyncConnection, code_ids: Collection[UUID]
) -> dict[UUID, tuple[UUID, int]]:
    """By code: the entry that spent it, and how much."""
    query = sa.select(spends.c.code_id, spends.c.entry_id, spends.c.minor_units)
    rows = await connection.execute(query.where(bulk.among(spends.c.code_id, code_ids)))
    return {row.code_id: (row.entry_id, row.minor_units) for row in rows}


async def set_state(
    connection: AsyncConnection,
    code_ids: Collection[UUID],
    state: State,
    *,
    now: datetime,
    release: Release = Release.NONE,
    revoke_time: datetime | None = None,
    release_time: datetime | None = None,
) -> None:
    """Move codes that are locked. Times that are None stay as they are."""
    values: dict[str, Any] = {
        "state": int(state),
        "release_step": int(release),
        "update_time": now,
    }
    if revoke_time is not None:
        values["revoke_time"] = revoke_time
    if release_time is not None:
        values["release_time"] = release_time
    statement = sa.update(codes).where(bulk.among(codes.c.code_id, code_ids)).values(values)
    await connection.execute(statement)


async def insert_spends(connection: AsyncConnection, spent: Iterable[tuple[Code, Entry]]) -> None:
    """Record which entries spend which codes.

    Raises:
        IntegrityError: a code was spent before.
    """
    rows = [
        {
            "code_id": code.code_id,
            "entry_id": entry.entry_id,
            "owner_id": code.owner_id,
            "minor_units": entry.money.minor_units,
            "value_minor_units": code.value.minor_units,
            "issue_time": code.issue_time,
        }
        for code, entry in spent
    ]
    await bulk.insert(connection, spends, rows)


async def delete_spends(connection: AsyncConnection, code_ids: Collection[UUID]) -> None:
    """Take back spends that payment refused."""
    await connection.execute(sa.delete(spends).where(bulk.among(spends.c.code_id, code_ids)))


async def lock_releasable(
    connection: AsyncConnection, *, before: datetime, limit: int
) -> list[Code]:
    """Unspent codes whose release time has passed, held until the transaction ends.

    Without RESERVING ones: their request is answered first.
    """
    query = (
        _select()
        .where(
            codes.c.release_step == int(Release.NONE),
            codes.c.release_time <= before,
            codes.c.state.in_(_RELEASABLE),
        )
        .order_by(codes.c.release_time)
        .limit(limit)
    )
    rows = await connection.execute(query.with_for_update(skip_locked=True))
    return [_code(row) for row in rows]


async def list_release_due(connection: AsyncConnection, *, limit: int) -> list[UUID]:
    """Codes whose money payment has yet to give back."""
    query = (
        sa.select(codes.c.code_id)
        .where(codes.c.release_step == int(Release.DUE))
        .order_by(codes.c.release_time)
        .limit(limit)
    )
    return list((await connection.execute(query)).scalars())


async def set_released(connection: AsyncConnection, code_ids: Collection[UUID]) -> None:
    """The money behind codes went back; those nobody ever saw are forgotten."""
    chosen = bulk.among(codes.c.code_id, code_ids)
    await connection.execute(sa.delete(codes).where(chosen, codes.c.state == int(State.ABANDONED)))
    await connection.execute(sa.update(codes).where(chosen).values(release_step=int(Release.DONE)))


async def denied_keys(connection: AsyncConnection, scope: str, *, now: datetime) -> list[int]:
    """Filter keys of an area's codes that were revoked and have not expired."""
    query = sa.select(codes.c.filter_key).where(
        codes.c.scope == scope, codes.c.state == int(State.REVOKED), codes.c.expire_time > now
    )
    return _keys((await connection.execute(query)).scalars())


async def issued_keys(connection: AsyncConnection, scope: str, *, now: datetime) -> list[int]:
    """Filter keys of an area's codes that may be spent, or may be in a moment."""
    query = sa.select(codes.c.filter_key).where(
        codes.c.scope == scope, codes.c.state.in_(_SPENDABLE), codes.c.expire_time > now
    )
    return _keys((await connection.execute(query)).scalars())


async def last_change(connection: AsyncConnection, scope: str) -> datetime | None:
    """When a code of an area last changed; None when there is none."""
    query = (
        sa.select(codes.c.update_time)
        .where(codes.c.scope == scope)
        .order_by(codes.c.update_time.desc())
        .limit(1)
    )
    return (await connection.execute(query)).scalar_one_or_none()


def _keys(found: Iterable[Any]) -> list[int]:
    return sorted(int.from_bytes(bytes(key), "big") for key in found)


def _code(row: sa.Row[Any]) -> Code:
    return Code(
        code_id=row.code_id,
        issue_id=row.issue_id,
        owner_id=row.owner_id,
        value=Money(row.minor_units, row.currency_code),
        hint=row.hint,
        scope=row.scope,
        state=State(row.state),
        release=Release(row.release_step),
        issue_time=row.issue_time,
        expire_time=row.expire_time,
        release_time=row.release_time,
        revoke_time=row.revoke_time,
    )
