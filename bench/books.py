"""What clients were told, held against what the database says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import UUID

from bench.http2 import NO_STATUS
from bench.load import Outcome
from bench.seed import CURRENCY, World
from services import names, sql
from services.payment import audit, store
from services.payment.domain.ledger import Bucket, WalletKey
from services.payment.domain.payment import State
from services.payment.rows import wallet_key

_ROWS_AT_ONCE = 5_000
_SHOWN_MAX = 10
# A client that is told one of these cannot know whether its payment is stored: it would ask by its request_id.
# CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS, and no status at all.
_OUTCOME_UNKNOWN = frozenset({1, 2, 4, 13, 14, 15, NO_STATUS})
# What a client that waits may be told.
_FINAL = frozenset({State.SUCCESS, State.FAILED, State.FLAGGED})


class Paid(NamedTuple):
    """A payment, as far as both sides know of it."""

    payer: UUID
    vendor: UUID
    amount: int
    state: int


@dataclass
class Told:
    """What clients were told, by request id.

    Attributes:
        payments: Of answers: what was asked and the state told.
        refused: Of refusals that mean that nothing is stored.
        unknown: What was asked in calls that may or may not be stored.
    """

    payments: dict[str, Paid] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    unknown: dict[str, Paid] = field(default_factory=dict)

    @classmethod
    def by(cls, outcomes: Iterable[Outcome], world: World) -> Told:
        """All that some loads in one world were told."""
        told = cls()
        vendors = world.vendor_ids
        for outcome in outcomes:
            for number, request_id in enumerate(outcome.request_ids):
                status = outcome.statuses[number]
                asked = Paid(
                    world.payers[outcome.payers[number]],
                    vendors[outcome.vendors[number]],
                    outcome.amounts[number],
                    outcome.states[number],
                )
                if status == 0:
                    told.payments[request_id] = asked
                elif status in _OUTCOME_UNKNOWN:
                    told.unknown[request_id] = asked
                else:
                    told.refused.add(request_id)
        return told


@dataclass(frozen=True)
class Books:
    """What was found.

    Attributes:
        wrong: What does not match, at most ten; empty when the books are right.
        wrong_count: How much does not.
        states: Stored payments by state.
        times: When each payment was created, by request id.
        laws: Each law of the ledger, and whether it holds.
    """

    wrong: list[str]
    wrong_count: int
    states: dict[str, int]
    times: dict[str, datetime]
    laws: dict[int, bool]

    @property
    def match(self) -> bool:
        """Nothing is wrong."""
        return not self.wrong

    def group_sizes(self, request_ids: Iterable[str]) -> Counter[int]:
        """How many transactions settled so many payments of some requests, by size."""
        # Every payment of a group was created at the same instant.
        times = Counter(self.times[found] for found in request_ids if found in self.times)
        return Counter(times.values())


async def check(database_url: str, told: Told, world: World, *, since: UUID | None = None) -> Books:
    """Compare payments one by one, then every balance with what was told, then check every law of the ledger.

    Args:
        database_url: The ledger's.
        told: What clients were told since the world was made. Nobody else has paid in it.
        world: Whose balances.
        since: Payments with smaller ids were there before, made by no client and with no event. Then the laws that can
            be checked without their events are checked by sums: 1 and 2.
    """
    began = world.began_with()
    engine = sql.create_engine(database_url)
    try:
        stored, times = await _payments(engine, since)
        balances = await _balances(engine, list(began))
        if since is None:
            laws = {
                number: finding.first_broken
                for number, finding in (await audit.check(engine)).items()
            }
        else:
            laws = await _sums(engine)
    finally:
        await engine.dispose()
    wrong = differences(stored, told)
    wrong += wrong_balances(balances, _settled(stored, told), began)
    wrong += [f"law {number}: {broken}" for number, broken in laws.items() if broken is not None]
    return Books(
        wrong=wrong[:_SHOWN_MAX],
        wrong_count=len(wrong),
        states=dict(Counter(State(paid.state).name for _, paid in stored)),
        times={request_id: time for (request_id, _), time in zip(stored, times, strict=True)},
        laws={number: broken is None for number, broken in laws.items()},
    )


def differences(stored: Sequence[tuple[str, Paid]], told: Told) -> list[str]:
    """Where rows and answers part; each request must be stored once, just as its client was told.

    Args:
        stored: Request id and payment of every row.
        told: What clients were told.
    """
    by_request = dict(stored)
    times = Counter(request_id for request_id, _ in stored)
    wrong = [
        f"request {found}: stored {count} times" for found, count in times.items() if count > 1
    ]
    for request_id, paid in told.payments.items():
        found = by_request.get(request_id)
        if paid.state not in _FINAL:
            wrong.append(f"request {request_id}: told {_state(paid.state)}, which is no outcome")
        elif found != paid:
            wrong.append(f"request {request_id}: told {_shown(paid)}, stored {_shown(found)}")
    for request_id, found in by_request.items():
        if request_id in told.payments:
            continue
        asked = told.unknown.get(request_id)
        if request_id in told.refused:
            wrong.append(f"request {request_id}: refused, stored {_shown(found)}")
        elif asked is None:
            wrong.append(f"request {request_id}: never sent, stored {_shown(found)}")
        elif found[:-1] != asked[:-1]:
            wrong.append(f"request {request_id}: asked {_shown(asked)}, stored {_shown(found)}")
    return wrong


def wrong_balances(
    balances: Mapping[UUID, tuple[int, int]], settled: Iterable[Paid], began: Mapping[UUID, int]
) -> list[str]:
    """Where balances are not what payments make them.

    Args:
        balances: `online` and `held`, by owner.
        settled: The payments that there are.
        began: What each had online in the beginning.
    """
    online, held = Counter[UUID](), Counter[UUID]()
    online.update(began)
    for paid in settled:
        if paid.state in {State.SUCCESS, State.FLAGGED}:
            online[paid.payer] -= paid.amount
        if paid.state == State.SUCCESS:
            online[paid.vendor] += paid.amount
        if paid.state == State.FLAGGED:
            held[paid.payer] += paid.amount
    return [
        f"{names.user_name(owner)}: online and held are {found}, what was told makes "
        f"{(online[owner], held[owner])}"
        for owner, found in balances.items()
        if found != (online[owner], held[owner])
    ]


def _settled(stored: Sequence[tuple[str, Paid]], told: Told) -> Iterable[Paid]:
    # Where clients were told, their word counts; where they were not, the row is all there is.
    yield from told.payments.values()
    yield from (paid for request_id, paid in stored if request_id in told.unknown)


def _state(state: int) -> str:
    return State(state).name if state else "nothing"


def _shown(paid: Paid | None) -> str:
    if paid is None:
        return "nothing"
    return f"{_state(paid.state)} of {paid.amount} from {paid.payer} to {paid.vendor}"


async def _sums(engine: AsyncEngine) -> dict[int, str | None]:
    """The first two laws, by sums that the database makes: what is broken, by number."""
    wallets = store.wallets
    buckets = (wallets.c.online, wallets.c.offline, wallets.c.reserved, wallets.c.held)
    everything = sa.select(sa.func.sum(sum(buckets[1:], start=buckets[0])))
    below = sa.select(sa.func.count()).where(
        wallets.c.is_system == 0, sa.or_(*(bucket < 0 for bucket in buckets))
    )
    async with sql.reading(engine, snapshot=True) as connection:
        total = (await connection.execute(everything)).scalar_one()
        count = (await connection.execute(below)).scalar_one()
    return {
        1: f"{CURRENCY}: all balances sum to {total}" if total else None,
        2: f"{count} wallets are below zero" if count else None,
    }


async def _payments(
    engine: AsyncEngine, since: UUID | None
) -> tuple[list[tuple[str, Paid]], list[datetime]]:
    table = store.payments
    columns = (
        table.c.payment_id,
        table.c.request_id,
        table.c.payer_wallet,
        table.c.vendor_wallet,
        table.c.amount,
        table.c.state,
        table.c.create_time,
    )
    query = sa.select(*columns).order_by(table.c.payment_id).limit(_ROWS_AT_ONCE)
    if since is not None:
        query = query.where(table.c.payment_id > since)
    found: list[tuple[str, Paid]] = []
    times: list[datetime] = []
    async with sql.reading(engine) as connection:
        rows = (await connection.execute(query)).all()
        while rows:
            for row in rows:
                payer = wallet_key(row.payer_wallet).owner_id
                vendor = wallet_key(row.vendor_wallet).owner_id
                found.append((str(row.request_id), Paid(payer, vendor, row.amount, row.state)))
                times.append(row.create_time)
            after = query.where(table.c.payment_id > rows[-1].payment_id)
            rows = (await connection.execute(after)).all()
    return found, times


async def online_balances(engine: AsyncEngine, owners: Sequence[UUID]) -> dict[UUID, int]:
    """What each has online; nothing for who has no wallet."""
    return {owner: online for owner, (online, _) in (await _balances(engine, owners)).items()}


async def _balances(engine: AsyncEngine, owners: Sequence[UUID]) -> dict[UUID, tuple[int, int]]:
    """`online` and `held` of each; nothing for who has no wallet."""
    balances = dict.fromkeys(owners, (0, 0))
    async with sql.reading(engine) as connection:
        for start in range(0, len(owners), _ROWS_AT_ONCE):
            keys = [WalletKey(owner, CURRENCY) for owner in owners[start : start + _ROWS_AT_ONCE]]
            for key, wallet in (await store.read_wallets(connection, keys)).items():
                balances[key.owner_id] = (
                    wallet.balance(Bucket.ONLINE),
                    wallet.balance(Bucket.HELD),
                )
    return balances
