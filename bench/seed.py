"""A world to pay in: approved payers with money and tokens, vendors with sites.

Everything is what the services themselves would have stored and said: accounts and events through the user service's
store, money through the ledger's commands, tokens signed with the user service's key. Only the password is everybody's
same one, because 6,000 Argon2id hashes are minutes of work that measure nothing here.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils import UUID, uuid4, uuid7

from cli.process import StartError
from cli.stack.endpoints import Endpoints
from services import event_log, names, sql
from services.fraud.store.tables import sites
from services.money import Money
from services.payment import store as ledger_store
from services.payment.domain.book import Policy, Request
from services.payment.domain.ledger import Bucket, Purpose, WalletKey
from services.payment.domain.wallet_commands import MoveFunds
from services.payment.group import Group
from services.user import events
from services.user.domain import session, signing_key
from services.user.domain.site import Position, Site
from services.user.domain.user import Role, State, User
from services.user.passwords import Passwords
from services.user.signing import KeyRing
from services.user.store import signing_keys, tables, users
from tallystick.event.v1 import event_pb2

CURRENCY = "INR"
# What each payer is given, in minor units: more than a run can spend.
MONEY_EACH = 1_000_000_00
# Near each other, so that a payer is near every vendor: distance is a rule this load breaks on purpose only.
_CENTRE = (12.9716, 77.5946)
_ACCOUNTS_PER_TRANSACTION = 200
_WALLETS_PER_QUERY = 1_000
_ARRIVAL_SECONDS_MAX = 120.0
_POLL_SECONDS = 0.1
# A payer's bucket, as the contract has it, holds 10 and gets another every 6 seconds: who pays no oftener than this is
# never refused, though clocks are not that exact.
_BURST = 10
_SECONDS_BETWEEN = 6.6


@dataclass(frozen=True)
class World:
    """Who pays whom.

    Attributes:
        payers: Ids of who pays; each began with MONEY_EACH, or with nothing where there is no ledger.
        tokens: An access token for each payer, good for 15 minutes.
        vendors: `users/{uuid}`, latitude and longitude of each.
        opening: Online balances that were others when the load began, by owner.
    """

    payers: list[UUID]
    tokens: list[str]
    vendors: list[tuple[str, float, float]]
    opening: dict[UUID, int] = field(default_factory=dict)

    @property
    def vendor_ids(self) -> list[UUID]:
        """Whose shops they are."""
        return [names.last_id(name) for name, _, _ in self.vendors]

    def began_with(self) -> dict[UUID, int]:
        """Online balances of everybody when the load began."""
        nothing = dict.fromkeys(self.vendor_ids, 0)
        return {**nothing, **dict.fromkeys(self.payers, MONEY_EACH), **self.opening}


def payers_needed(rate: float, seconds: float) -> int:
    """How many must share a load, each paying in turn, for none to meet the limit of 10 a minute."""
    by_burst = rate * seconds / _BURST
    by_refill = rate * _SECONDS_BETWEEN
    return max(1, ceil(min(by_burst, by_refill)))


async def seed(
    endpoints: Endpoints, key_file: Path, *, payers: int, vendors: int, ledger: bool = True
) -> World:
    """Make a world on a running stack, and wait until every service knows of it.

    Args:
        endpoints: The stack.
        key_file: What its signing keys are encrypted with.
        payers: How many, each with money.
        vendors: How many, each with one site.
        ledger: There is a payment service that opens wallets; without one nobody has money.

    Raises:
        StartError: a service has not heard of everybody after two minutes.
    """
    engines = {
        name: sql.create_engine(endpoints.services[name].database_url)
        for name in ("user", "payment", "fraud")
    }
    try:
        shops = [_account(Role.VENDOR) for _ in range(vendors)]
        people = [_account(Role.USER) for _ in range(payers)]
        sites = {shop.user_id: [_site(shop, number)] for number, shop in enumerate(shops)}
        await _register(engines["user"], shops + people, sites)
        await _until(lambda: _knows_sites(engines["fraud"], vendors), "fraud")
        if ledger:
            await _until(lambda: _has_wallets(engines["payment"], shops + people), "payment")
            owners = [person.user_id for person in people]
            await _move(
                engines["payment"],
                owners,
                MONEY_EACH,
                purpose=Purpose.TOP_UP,
                source=None,
                target=Bucket.ONLINE,
            )
        return World(
            [person.user_id for person in people],
            await _sign_in(engines["user"], KeyRing.read(key_file), people),
            [
                (names.user_name(owner), found.position.latitude, found.position.longitude)
                for owner, (found,) in sites.items()
            ],
        )
    finally:
        for engine in engines.values():
            await engine.dispose()


async def sign_in(
    endpoints: Endpoints, key_file: Path, owners: Sequence[UUID], role: Role = Role.USER
) -> list[str]:
    """An access token for each owner, whom nobody but the ledger need know."""
    engine = sql.create_engine(endpoints.services["user"].database_url)
    try:
        people = [_account(role, owner) for owner in owners]
        return await _sign_in(engine, KeyRing.read(key_file), people)
    finally:
        await engine.dispose()


def _account(role: Role, user_id: UUID | None = None) -> User:
    now, user_id = datetime.now(UTC), user_id or uuid7()
    name = f"bench-{user_id.hex}"
    return User(user_id, name, "Bench", role, State.ACTIVE, "bench", now, now, 2)


def _site(shop: User, number: int) -> Site:
    place = random.Random(number)  # noqa: S311 - places, the same every time
    position = Position(
        _CENTRE[0] + place.uniform(-0.02, 0.02),
        _CENTRE[1] + place.uniform(-0.02, 0.02),
        8.0,
        mocked=False,
    )
    return Site(shop.user_id, uuid7(), "Shop", position, is_open=True, create_time=shop.create_time)


async def _register(
    engine: AsyncEngine, accounts: Sequence[User], sites: dict[UUID, list[Site]]
) -> None:
    passwords = Passwords(threads=1)
    try:
        password_hash = await passwords.hash(secrets.token_urlsafe(32))
    finally:
        passwords.close()
    for start in range(0, len(accounts), _ACCOUNTS_PER_TRANSACTION):
        batch = accounts[start : start + _ACCOUNTS_PER_TRANSACTION]
        await sql.transact(engine, _registration(batch, sites, password_hash))


def _registration(
    batch: Sequence[User], sites: dict[UUID, list[Site]], password_hash: str
) -> Callable[[AsyncConnection], Awaitable[None]]:
    async def work(connection: AsyncConnection) -> None:
        recorded: list[event_pb2.Event] = []
        for account in batch:
            await users.insert_user(connection, account, password_hash)
            own = sites.get(account.user_id, [])
            for site in own:
                await users.insert_site(connection, site)
            by = events.Circumstances(events.ITSELF, account.create_time)
            change = event_pb2.UserChanged.CHANGE_APPROVED
            recorded.append(events.user_changed(uuid7(), by, change, account, own))
        await event_log.append(connection, tables.event_log, recorded)

    return work


async def _until(holds: Callable[[], Awaitable[bool]], service: str) -> None:
    try:
        async with asyncio.timeout(_ARRIVAL_SECONDS_MAX):
            while True:
                if await holds():
                    return
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise StartError(
            f"{service} has not heard of all accounts after {_ARRIVAL_SECONDS_MAX:.0f} s."
        ) from None


async def _knows_sites(engine: AsyncEngine, vendors: int) -> bool:
    # What is in the table is in the index that the checks use; it is written there afterwards.
    async with sql.reading(engine) as connection:
        query = sa.select(sa.func.count()).select_from(sites)
        return (await connection.execute(query)).scalar_one() >= vendors


async def _has_wallets(engine: AsyncEngine, accounts: Sequence[User]) -> bool:
    keys = [WalletKey(account.user_id, CURRENCY) for account in accounts]
    async with sql.reading(engine) as connection:
        for start in range(0, len(keys), _WALLETS_PER_QUERY):
            wanted = keys[start : start + _WALLETS_PER_QUERY]
            if len(await ledger_store.read_wallets(connection, wanted)) < len(wanted):
                return False
    return True


async def set_aside(endpoints: Endpoints, owners: Sequence[UUID], amount: int) -> None:
    """Move part of everybody's money to where offline codes are paid from."""
    engine = sql.create_engine(endpoints.services["payment"].database_url)
    try:
        await _move(
            engine,
            owners,
            amount,
            purpose=Purpose.MOVE_BALANCE,
            source=Bucket.ONLINE,
            target=Bucket.OFFLINE,
        )
    finally:
        await engine.dispose()


async def _move(
    engine: AsyncEngine,
    owners: Sequence[UUID],
    amount: int,
    *,
    purpose: Purpose,
    source: Bucket | None,
    target: Bucket,
) -> None:
    async def no_assessment(_: object) -> None:
        return None

    group = Group(
        engine,
        Policy(frozenset({CURRENCY})),
        assess=no_assessment,
        committed=lambda: None,
        now=lambda: datetime.now(UTC),
        new_id=uuid7,
        pace=lambda: 0.0,
        size_max=256,
        queue_max=len(owners),
    )
    operator = uuid4()
    commands = [
        MoveFunds(
            request=_request_of(operator if source is None else owner),
            transfer_id=uuid7(),
            wallet=WalletKey(owner, CURRENCY),
            purpose=purpose,
            source=source,
            target=target,
            amount=Money(amount, CURRENCY),
            reference="bench",
            actor=names.user_name(operator if source is None else owner),
        )
        for owner in owners
    ]
    running = asyncio.create_task(group.run())
    try:
        await asyncio.gather(*(group.submit(command) for command in commands))
    finally:
        group.close()
        await running


def _request_of(caller: UUID) -> Request:
    """A request nobody made before."""
    request_id = uuid4()
    body = hashlib.sha256(secrets.token_bytes(16)).digest()
    return Request(caller.bytes + request_id.bytes, body, str(request_id))


async def _sign_in(engine: AsyncEngine, ring: KeyRing, people: Sequence[User]) -> list[str]:
    now = datetime.now(UTC)
    async with sql.reading(engine) as connection:
        keys = await signing_keys.list_keys(connection)
    key = signing_key.signing(keys, now=now)
    return [
        ring.sign(key, session.access_claims(person, uuid4(), uuid4(), now=now)[0])
        for person in people
    ]
