"""Checks the ledger's laws (design, section 3) on a running database, from the rows themselves.

Each law is checked by another way than the one that upholds it: sums over stored rows, and a fold of the event log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID

from services import names, sql
from services.audit_finding import Finding
from services.payment import store, wire
from services.payment.domain.ledger import SYSTEM_NAMES, Account, Bucket, Purpose
from services.payment.domain.payment import MOVES, Channel, FailureReason, State
from services.payment.domain.reservation import ReservationState
from services.payment.rows import wallet_id, wallet_key
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import wallet_pb2

_ROWS_AT_ONCE = 2_000
_ID_BYTES = 16

_MOVED_BY_REQUEST = [
    Purpose.TOP_UP,
    Purpose.MOVE_BALANCE,
    Purpose.PAYOUT,
    Purpose.REFUND,
    Purpose.RESERVE,
]
# What may have moved for a payment in a state, refunds and rests of reservations aside: purpose, account it left and
# account it went to, in the order of purposes. Source of the money: the online balance, or what was reserved.
_ONLINE, _OFFLINE, _RESERVED, _HELD = Bucket
_PAID_ONLINE = (Purpose.PAYMENT, _ONLINE, _ONLINE)
_HELD_ONLINE = (Purpose.HOLD, _ONLINE, _HELD)
_PAID_OFFLINE = (Purpose.PAYMENT, _RESERVED, _ONLINE)
_HELD_OFFLINE = (Purpose.HOLD, _RESERVED, _HELD)
_CAPTURED = (Purpose.HOLD_CAPTURE, _HELD, _ONLINE)
_Moves = list[list[tuple[int, int, int]]]
_MOVES_OF_STATE: dict[Channel, dict[State, _Moves]] = {
    Channel.ONLINE: {
        State.PENDING: [[]],
        State.PROCESSING: [[]],
        State.SUCCESS: [[_PAID_ONLINE], [_HELD_ONLINE, _CAPTURED]],
        State.FAILED: [[], [_HELD_ONLINE, (Purpose.HOLD_RELEASE, _HELD, _ONLINE)]],
        State.FLAGGED: [[_HELD_ONLINE]],
    },
    # It is committed with its outcome, and fails by review alone.
    Channel.OFFLINE: {
        State.PENDING: [],
        State.PROCESSING: [],
        State.SUCCESS: [[_PAID_OFFLINE], [_HELD_OFFLINE, _CAPTURED]],
        State.FAILED: [[_HELD_OFFLINE, (Purpose.HOLD_RELEASE, _HELD, _OFFLINE)]],
        State.FLAGGED: [[_HELD_OFFLINE]],
    },
}
_RETURNED = (_RESERVED, _OFFLINE)
_REFUNDED = (_ONLINE, _ONLINE)
_STATE_OF_FACT = {
    "payment_created": State.PENDING,
    "payment_processing": State.PROCESSING,
    "payment_succeeded": State.SUCCESS,
    "payment_failed": State.FAILED,
    "payment_flagged": State.FLAGGED,
}


async def check(engine: AsyncEngine) -> dict[int, Finding]:
    """Check every law the ledger alone can break, in one snapshot; by law number."""
    async with sql.reading(engine, snapshot=True) as connection:
        return {
            1: await _sums_to_zero(connection),
            2: await _not_below_zero(connection),
            3: await _balances_are_transfers(connection),
            4: await _requests_move_once(connection),
            5: await _reservations_settle_once(connection),
            6: await _reserved_backs_codes(connection),
            7: await _log_rebuilds(connection),
            8: await _holds_resolved_once(connection),
            9: await _offline_never_lacks_funds(connection),
        }


_BALANCES = {
    Bucket.ONLINE: store.wallets.c.online,
    Bucket.OFFLINE: store.wallets.c.offline,
    Bucket.RESERVED: store.wallets.c.reserved,
    Bucket.HELD: store.wallets.c.held,
}


async def _sums_to_zero(connection: AsyncConnection) -> Finding:
    # Grouped here and not by SUBSTR in SQL: how a binary column is cut differs between databases.
    sums: dict[str, int] = {}
    count = 0
    query = sa.select(store.wallets.c.wallet_id, *_BALANCES.values())
    for row in await connection.execute(query):
        currency_code = wallet_key(row.wallet_id).currency_code
        sums[currency_code] = sums.get(currency_code, 0) + sum(row[1:])
        count += 1
    broken = (f"{code}: all balances sum to {total}" for code, total in sums.items() if total)
    return Finding("1. Per currency, all balances sum to zero.", count, next(broken, None))


async def _not_below_zero(connection: AsyncConnection) -> Finding:
    wallets = store.wallets
    count = (await connection.execute(sa.select(sa.func.count()).select_from(wallets))).scalar_one()
    below = sa.or_(*(column < 0 for column in _BALANCES.values()))
    query = sa.select(wallets).order_by(wallets.c.wallet_id).where(below)
    broken = None
    for row in await connection.execute(query):
        key = wallet_key(row.wallet_id)
        if key.owner_id not in SYSTEM_NAMES:
            broken = f"{names.wallet_name(*key)}: {list(row[1:5])}"
            break
    return Finding("2. No user account is below zero.", count, broken)


async def _balances_are_transfers(connection: AsyncConnection) -> Finding:
    transfers = store.transfers
    sides = sa.union_all(
        sa.select(
            transfers.c.credit_wallet.label("wallet"),
            transfers.c.credit_bucket.label("bucket"),
            transfers.c.amount.label("delta"),
        ),
        sa.select(transfers.c.debit_wallet, transfers.c.debit_bucket, -transfers.c.amount),
    ).subquery()
    query = sa.select(sides.c.wallet, sides.c.bucket, sa.func.sum(sides.c.delta)).group_by(
        sides.c.wallet, sides.c.bucket
    )
    folded = {
        (bytes(wallet), bucket): int(total)
        for wallet, bucket, total in await connection.execute(query)
    }
    stored = await _stored_balances(connection)
    return Finding(
        "3. Balance = fold of transfers, for every account.",
        len(stored),
        _first_difference(stored, folded, "transfers"),
    )


async def _stored_balances(connection: AsyncConnection) -> dict[tuple[bytes, int], int]:
    query = sa.select(store.wallets.c.wallet_id, *_BALANCES.values())
    return {
        (bytes(row.wallet_id), int(bucket)): balance
        for row in await connection.execute(query)
        for bucket, balance in zip(_BALANCES, row[1:], strict=True)
    }


def _first_difference(
    stored: dict[tuple[bytes, int], int], folded: dict[tuple[bytes, int], int], source: str
) -> str | None:
    for wallet, bucket in sorted(stored.keys() | folded.keys()):
        found, expected = stored.get((wallet, bucket), 0), folded.get((wallet, bucket), 0)
        if found != expected:
            account = wire.account_name(Account(wallet_key(wallet), Bucket(bucket)))
            return f"{account}: balance {found}, {source} say {expected}"
    return None


async def _requests_move_once(connection: AsyncConnection) -> Finding:
    law = "4. One request_id moves money at most once."
    requests, transfers = store.requests, store.transfers
    count = 0
    async for batch in _batches(connection, store.payments, store.payments.c.payment_id):
        count += len(batch)
        online = []
        for row in batch:
            if row.channel == Channel.ONLINE:
                online.append(row)
            elif row.request_id != row.payment_id:
                # There is no request beside it: its own id is what made it happen once.
                broken = f"payments/{row.payment_id}: offline, of request {row.request_id}"
                return Finding(law, count, broken)
        keys = {_asked(row): row.payment_id for row in online}
        if len(keys) < len(online):
            return Finding(law, count, _twice(online))
        query = sa.select(requests.c.request_key, requests.c.payment_id)
        rows = await connection.execute(query.where(requests.c.request_key.in_(list(keys))))
        made = {bytes(row.request_key): row.payment_id for row in rows}
        for key, payment_id in keys.items():
            if made.get(key) != payment_id:
                found = "no payment" if key not in made else f"payments/{made[key]}"
                return Finding(law, count, f"payments/{payment_id}: its request made {found}")
    # Top-ups, payouts, moves and refunds: each the answer to exactly one request.
    answered = sa.select(requests.c.transfer_id, sa.func.count()).group_by(requests.c.transfer_id)
    answers = await connection.execute(answered.where(requests.c.transfer_id.is_not(None)))
    times = {row.transfer_id: row[1] for row in answers}
    own = sa.select(transfers.c.transfer_id).where(transfers.c.purpose.in_(_MOVED_BY_REQUEST))
    for transfer_id in (await connection.execute(own)).scalars():
        count += 1
        if times.pop(transfer_id, 0) != 1:
            return Finding(law, count, f"transfers/{transfer_id} has not exactly one request")
    for transfer_id in times:
        return Finding(law, count, f"transfers/{transfer_id} was answered and does not exist")
    return Finding(law, count, None)


def _twice(online: Sequence[Any]) -> str:
    seen: set[bytes] = set()
    for row in online:
        key = _asked(row)
        if key in seen:
            return f"payments/{row.payment_id}: a second payment of request {row.request_id}"
        seen.add(key)
    raise AssertionError


def _asked(payment: Any) -> bytes:
    """The key of the request that made an online payment: its payer asked for it."""
    payer = bytes(payment.payer_wallet[:_ID_BYTES])
    asked: bytes = payer + payment.request_id.bytes
    return asked


async def _reservations_settle_once(connection: AsyncConnection) -> Finding:
    law = "5. One code settles at most once: every settled reservation has one payment, and it the reservation."
    reservations, payments = store.reservations, store.payments
    count = 0
    async for batch in _batches(connection, reservations, reservations.c.reservation_id):
        count += len(batch)
        settled_by = [row.payment_id for row in batch if row.payment_id]
        query = sa.select(payments).where(payments.c.payment_id.in_(settled_by))
        paid = {row.payment_id: row for row in await connection.execute(query)}
        for row in batch:
            broken = _wrongly_settled(row, paid.get(row.payment_id))
            if broken:
                return Finding(law, count, broken)
    # Nothing says which payments are offline ones but they themselves: an index for the audit alone would be paid for
    # by every payment there is.
    async for batch in _batches(connection, payments, payments.c.payment_id):
        offline = [row for row in batch if row.channel == Channel.OFFLINE]
        ids = [row.reservation_id for row in offline]
        query = sa.select(reservations).where(reservations.c.reservation_id.in_(ids))
        behind = {row.reservation_id: row for row in await connection.execute(query)} if ids else {}
        for row in offline:
            count += 1
            reservation = behind.get(row.reservation_id)
            if reservation is None or reservation.payment_id != row.payment_id:
                name = f"payments/{row.payment_id}"
                return Finding(law, count, f"{name}: reservations/{row.reservation_id} is not its")
    return Finding(law, count, None)


def _wrongly_settled(reservation: Any, payment: Any) -> str | None:
    state = ReservationState(reservation.state)
    name = f"reservations/{reservation.reservation_id}, {state.name}"
    if (state is ReservationState.SETTLED) != (reservation.payment_id is not None):
        return f"{name}: settled by {reservation.payment_id}"
    if state is not ReservationState.SETTLED:
        return None
    if payment is None or payment.reservation_id != reservation.reservation_id:
        return f"{name}: payments/{reservation.payment_id} is not paid from it"
    owner, payer = bytes(reservation.wallet_id), bytes(payment.payer_wallet)
    if payment.amount > reservation.amount or payer != owner:
        return f"{name}, {reservation.amount}: does not cover payments/{payment.payment_id}"
    return None


async def _reserved_backs_codes(connection: AsyncConnection) -> Finding:
    law = "6. Reserved = value of live codes, for every wallet."
    reservations = store.reservations
    live: dict[tuple[bytes, int], int] = {}
    query = (
        sa.select(reservations.c.wallet_id, sa.func.sum(reservations.c.amount))
        .where(reservations.c.state == int(ReservationState.LIVE))
        .group_by(reservations.c.wallet_id)
    )
    for wallet, total in await connection.execute(query):
        live[bytes(wallet), int(Bucket.RESERVED)] = int(total)
    balances = await _stored_balances(connection)
    stored = {key: balance for key, balance in balances.items() if key[1] == Bucket.RESERVED}
    return Finding(law, len(stored), _first_difference(stored, live, "live reservations"))


async def _offline_never_lacks_funds(connection: AsyncConnection) -> Finding:
    law = "9. An offline payment never fails for lack of funds."
    # By their reservations, which are few beside all payments: that each has one is law 5's.
    payments, reservations = store.payments, store.reservations
    paid = (
        sa.select(
            reservations.c.reservation_id,
            payments.c.payment_id,
            payments.c.state,
            payments.c.failure_reason,
        )
        .select_from(reservations)
        .outerjoin(payments, payments.c.payment_id == reservations.c.payment_id)
    )
    count = 0
    async for batch in _batches(connection, reservations, reservations.c.reservation_id, paid):
        for row in batch:
            if row.payment_id is None:
                continue
            count += 1
            if row.state == State.FAILED and row.failure_reason != FailureReason.REVIEW_REJECTED:
                reason = FailureReason(row.failure_reason).name
                return Finding(law, count, f"payments/{row.payment_id}: FAILED, {reason}")
    return Finding(law, count, None)


async def _holds_resolved_once(connection: AsyncConnection) -> Finding:
    law = "8. A hold is resolved exactly once, and every state has its transfers."
    transfers = store.transfers
    held: dict[tuple[bytes, int], int] = {}
    count = 0
    async for batch in _batches(connection, store.payments, store.payments.c.payment_id):
        count += len(batch)
        query = sa.select(transfers).where(
            transfers.c.payment_id.between(batch[0].payment_id, batch[-1].payment_id)
        )
        moved: dict[UUID, list[Any]] = {}
        for row in await connection.execute(query):
            moved.setdefault(row.payment_id, []).append(row)
        for row in batch:
            broken = _wrong_transfers(row, moved.get(row.payment_id, []))
            if broken:
                return Finding(law, count, broken)
            if row.state == State.FLAGGED:
                key = (bytes(row.payer_wallet), int(Bucket.HELD))
                held[key] = held.get(key, 0) + row.amount
    balances = await _stored_balances(connection)
    stored = {key: balance for key, balance in balances.items() if key[1] == Bucket.HELD}
    return Finding(law, count, _first_difference(stored, held, "flagged payments"))


def _wrong_transfers(payment: Any, moved: list[Any]) -> str | None:
    own: list[Any] = []
    refunds: list[Any] = []
    rests: list[Any] = []
    for each in moved:
        kind = {Purpose.REFUND: refunds, Purpose.RELEASE: rests}.get(each.purpose, own)
        kind.append(each)
    offline = payment.channel == Channel.OFFLINE
    settled = sorted((each.purpose, each.debit_bucket, each.credit_bucket) for each in own)
    right = (
        settled in _MOVES_OF_STATE[Channel(payment.channel)][State(payment.state)]
        and all(each.amount == payment.amount for each in own)
        and sum(each.amount for each in refunds) == payment.refunded
        and {(each.debit_bucket, each.credit_bucket) for each in refunds} <= {_REFUNDED}
        # How much of a reservation was left is law 6's; here, that it went back once.
        and len(rests) <= offline
        and {(each.debit_bucket, each.credit_bucket) for each in rests} <= {_RETURNED}
    )
    if right:
        return None
    shown = [
        f"{Purpose(each.purpose).name} {each.amount} {Bucket(each.debit_bucket).name}"
        f"->{Bucket(each.credit_bucket).name}"
        for each in moved
    ]
    return (
        f"payments/{payment.payment_id}: {Channel(payment.channel).name} {State(payment.state).name}"
        f" of {payment.amount}, refunded {payment.refunded}, moved by {shown}"
    )


async def _log_rebuilds(connection: AsyncConnection) -> Finding:
    law = "7. Folding the event log rebuilds every balance and every payment state."
    log = store.event_log
    balances: dict[tuple[bytes, int], int] = {}
    states: dict[UUID, int] = {}
    count = 0
    async for batch in _batches(connection, log, log.c.log_id):
        for row in batch:
            for event in event_pb2.EventBatch.FromString(bytes(row.events)).events:
                count += 1
                broken = _fold(event, balances, states)
                if broken:
                    return Finding(law, count, broken)
    broken = _first_difference(await _stored_balances(connection), balances, "events")
    if broken:
        return Finding(law, count, broken)
    async for batch in _batches(connection, store.payments, store.payments.c.payment_id):
        for row in batch:
            told = states.pop(row.payment_id, 0)
            if told != row.state:
                said = State(told).name if told else "nothing"
                found = State(row.state).name
                return Finding(law, count, f"payments/{row.payment_id}: {found}, events say {said}")
    for payment_id in states:
        return Finding(law, count, f"payments/{payment_id}: in the events, not in the table")
    return Finding(law, count, None)


def _fold(
    event: event_pb2.Event,
    balances: dict[tuple[bytes, int], int],
    states: dict[UUID, int],
) -> str | None:
    fact = event.WhichOneof("fact")
    if fact in _STATE_OF_FACT:
        payment_id = names.last_id(event.subject)
        before = states.get(payment_id)
        state = _STATE_OF_FACT[fact]
        if (None if before is None else State(before), state) not in MOVES:
            return f"{event.subject}: {state.name} after {before and State(before).name}"
        states[payment_id] = int(state)
    transfers: Iterable[wallet_pb2.Transfer] = ()
    if fact in {"payment_succeeded", "payment_failed", "payment_flagged"}:
        transfers = getattr(event, fact).transfers
    elif fact in {"payment_refunded", "funds_moved"}:
        transfers = (getattr(event, fact).transfer,)
    for transfer in transfers:
        debit, credit = _account(transfer.debit_account), _account(transfer.credit_account)
        balances[debit] = balances.get(debit, 0) - transfer.amount.minor_units
        balances[credit] = balances.get(credit, 0) + transfer.amount.minor_units
    return None


def _account(name: str) -> tuple[bytes, int]:
    wallet, bucket = wire.account(name)
    return wallet_id(wallet), int(bucket)


async def _batches(
    connection: AsyncConnection,
    table: sa.Table,
    key: sa.Column[Any],
    wanted: sa.Select[Any] | None = None,
) -> AsyncIterator[Sequence[Any]]:
    # By key, not by a server-side cursor: other statements run on this connection in between.
    every = sa.select(table) if wanted is None else wanted
    query = every.order_by(key).limit(_ROWS_AT_ONCE)
    rows = (await connection.execute(query)).all()
    while rows:
        yield rows
        after = query.where(key > rows[-1]._mapping[key])  # noqa: SLF001 - SQLAlchemy's documented API
        rows = (await connection.execute(after)).all()
