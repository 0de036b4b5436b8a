"""A ledger that has been in use for long: wallets and payments by the million, made inside MariaDB.

Every row is a function of its number, so that the database makes them by itself (its SEQUENCE engine counts) and the
books can be checked without reading them back. Each wallet was topped up once and made the same number of payments of
the same amount, one in five to the first vendor; every payment has its transfer and its request.

What is not made: the event log (its size changes nothing for a payment, and folding it is law 7's), and what the fraud
service remembers, which lives in Redis and forgets.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import UUID

from bench.seed import CURRENCY, MONEY_EACH
from services import sql
from services.payment import store
from services.payment.domain.ledger import FUNDING_ID, Bucket, Purpose, WalletKey
from services.payment.domain.payment import Channel, Decision, FailureReason, State
from services.payment.rows import wallet_id

# Minor units of every payment that is made here.
AMOUNT = 5_00
# How far back the oldest wallet and the oldest payment lie, and the newest.
_WALLETS_AGE = timedelta(days=365)
_PAYMENTS_AGE = timedelta(days=60)
_NEWEST_AGE = timedelta(days=1)
# Nobody repeats a request of these.
_NO_HASH = "REPEAT('\\0', 32)"
_OURS = "owner_version = 0 AND is_system = 0"
# Prime, so that counting in steps of it comes by every wallet before it comes by one twice.
_STEP = 7_368_787
_ROWS_AT_ONCE = 100_000
# The vendors' turns repeat after so many payments: a fifth to the first, the others in turn.
_HOT_EVERY = 5


@dataclass(frozen=True)
class Population:
    """What there is to be.

    Attributes:
        wallets: How many in the end. A power of ten, or anything that `_STEP` does not divide.
        few: How many in the beginning, spread evenly among the others; divides `wallets`.
        payments_each: Payments every wallet has made.
        vendors: Whose wallets exist.
        now: When it is.
    """

    wallets: int
    few: int
    payments_each: int
    vendors: Sequence[UUID]
    now: datetime

    @property
    def payments(self) -> int:
        """How many there are."""
        return self.wallets * self.payments_each

    def owners_of_few(self) -> list[UUID]:
        """Whose wallets there are in the beginning."""
        return [self.owner(number) for number in range(0, self.wallets, self._stride)]

    def owner(self, number: int) -> UUID:
        """Whose the wallet with a number is."""
        return _made_id("o", number, self._owner_clock)

    def payment(self, number: int) -> UUID:
        """The id of the payment with a number; they grow with it."""
        return _made_id("p", number, self._payment_clock)

    def opening(self, *, paid: bool) -> dict[UUID, int]:
        """Online balances of the few and of every vendor, before or after the payments were made."""
        each = MONEY_EACH - (AMOUNT * self.payments_each if paid else 0)
        balances = dict.fromkeys(self.owners_of_few(), each)
        taken = self._taken() if paid else Counter[int]()
        balances |= {vendor: AMOUNT * taken[place] for place, vendor in enumerate(self.vendors)}
        return balances

    @property
    def _stride(self) -> int:
        return self.wallets // self.few

    @property
    def _owner_clock(self) -> tuple[int, int]:
        return _clock(self.now, _WALLETS_AGE, self.wallets)

    @property
    def _payment_clock(self) -> tuple[int, int]:
        return _clock(self.now, _PAYMENTS_AGE, self.payments)

    def _taken(self) -> Counter[int]:
        """Payments by the vendor's place."""
        others = len(self.vendors) - 1
        period = _HOT_EVERY * others
        whole, rest = divmod(self.payments, period)
        return Counter(
            {
                place: whole * times
                for place, times in Counter(map(self._vendor, range(period))).items()
            }
        ) + Counter(map(self._vendor, range(rest)))

    def _vendor(self, number: int) -> int:
        return 0 if number % _HOT_EVERY == 0 else 1 + number % (len(self.vendors) - 1)

    # What follows is SQL: expressions of a number, which is an expression too.

    def _owner_sql(self, number: str) -> str:
        return _made_sql("o", number, self._owner_clock)

    def _wallet_sql(self, number: str) -> str:
        return f"CONCAT({self._owner_sql(number)}, '{CURRENCY}')"

    def _payment_sql(self, number: str) -> str:
        return _made_sql("p", number, self._payment_clock)

    def _request_sql(self, number: str) -> str:
        return _made_sql("r", number, self._payment_clock)

    def _vendor_sql(self, number: str) -> str:
        ids = ", ".join(
            f"0x{wallet_id(WalletKey(vendor, CURRENCY)).hex()}" for vendor in self.vendors
        )
        place = f"IF(({number}) % {_HOT_EVERY} = 0, 1, 2 + ({number}) % {len(self.vendors) - 1})"
        return f"ELT({place}, {ids})"

    def _payer_sql(self, number: str) -> str:
        """The number of the wallet that made a payment."""
        return f"(({number}) * {_STEP} % {self.wallets})"

    async def add_few(self, engine: AsyncEngine) -> None:
        """Make the wallets there are in the beginning."""
        await self._add_wallets(engine, f"MOD(seq, {self._stride}) = 0", self.few)

    async def add_others(self, engine: AsyncEngine) -> None:
        """Make the wallets between them."""
        await self._add_wallets(engine, f"MOD(seq, {self._stride}) <> 0", self.wallets - self.few)

    async def _add_wallets(self, engine: AsyncEngine, wanted: str, count: int) -> None:
        wallet, instant = self._wallet_sql("seq"), _micros_sql("seq", self._owner_clock)
        top_up = _made_sql("u", "seq", self._owner_clock)
        funding = f"0x{wallet_id(WalletKey(FUNDING_ID, CURRENCY)).hex()}"
        rows = {
            store.wallets: {
                "wallet_id": wallet,
                "online": str(MONEY_EACH),
                **dict.fromkeys(("offline", "reserved", "held", "is_system", "is_vendor"), "0"),
                "active": "1",
                # No event has told of their owners: that is what they are known by.
                "owner_version": "0",
                "update_time": instant,
            },
            store.transfers: {
                "transfer_id": top_up,
                "debit_wallet": funding,
                "debit_bucket": str(int(Bucket.ONLINE)),
                "credit_wallet": wallet,
                "credit_bucket": str(int(Bucket.ONLINE)),
                "amount": str(MONEY_EACH),
                "purpose": str(int(Purpose.TOP_UP)),
                "reference": "'bench'",
                "create_time": instant,
            },
            store.requests: {
                "request_key": f"CONCAT({self._owner_sql('seq')}, {_made_sql('v', 'seq', self._owner_clock)})",
                "body_hash": _NO_HASH,
                "transfer_id": top_up,
                "snapshot": "REPEAT('\\0', 40)",
            },
        }
        await _fill(engine, rows, self.wallets, lambda _: wanted)
        owed = f"VALUES ({funding}, {-MONEY_EACH * count}, 0, 0, 0, 1, 1, 0, 0, 0)"
        await _run(
            engine,
            f"INSERT INTO wallets {owed} ON DUPLICATE KEY UPDATE online = online - {MONEY_EACH * count}",
        )

    async def add_payments(self, engine: AsyncEngine) -> None:
        """Make what all wallets have paid, and what it changed of balances."""
        instant = _micros_sql("seq", self._payment_clock)
        payer, vendor = self._wallet_sql(self._payer_sql("seq")), self._vendor_sql("seq")
        # Requests lie in the order of who asked: made in that order they fill page after page.
        back = pow(_STEP, -1, self.wallets)
        asker = f"(seq DIV {self.payments_each})"
        asked = f"(seq % {self.payments_each} * {self.wallets} + {asker} * {back} % {self.wallets})"
        rows = {
            store.payments: {
                "payment_id": self._payment_sql("seq"),
                "payer_wallet": payer,
                "vendor_wallet": vendor,
                "amount": str(AMOUNT),
                "refunded": "0",
                "state": str(int(State.SUCCESS)),
                "failure_reason": str(int(FailureReason.NONE)),
                "risk_decision": str(int(Decision.ALLOW)),
                "risk_score": "0",
                "risk_reasons": "''",
                "latitude": "12.97",
                "longitude": "77.59",
                "accuracy_meters": "8",
                "mocked": "0",
                "reference": "CONCAT('order ', seq)",
                "request_id": self._request_sql("seq"),
                "create_time": instant,
                "update_time": instant,
                "channel": str(int(Channel.ONLINE)),
            },
            store.transfers: {
                "transfer_id": _made_sql("t", "seq", self._payment_clock),
                "debit_wallet": payer,
                "debit_bucket": str(int(Bucket.ONLINE)),
                "credit_wallet": vendor,
                "credit_bucket": str(int(Bucket.ONLINE)),
                "amount": str(AMOUNT),
                "purpose": str(int(Purpose.PAYMENT)),
                "payment_id": self._payment_sql("seq"),
                "reference": "''",
                "create_time": instant,
            },
            store.requests: {
                "request_key": f"CONCAT({self._owner_sql(asker)}, {self._request_sql(asked)})",
                "body_hash": _NO_HASH,
                "payment_id": self._payment_sql(asked),
            },
        }
        await _fill(engine, rows, self.payments, lambda _: "1")
        paid = AMOUNT * self.payments_each
        await _run(
            engine,
            f"UPDATE wallets SET online = online - {paid} WHERE {_OURS}",  # noqa: S608
        )
        for place, times in self._taken().items():
            key = wallet_id(WalletKey(self.vendors[place], CURRENCY)).hex()
            await _run(
                engine,
                f"UPDATE wallets SET online = online + {AMOUNT * times} WHERE wallet_id = 0x{key}",  # noqa: S608
            )


async def changed(engine: AsyncEngine, balance: int) -> int:
    """How many wallets that were made here have another online balance."""
    query = f"SELECT COUNT(*) FROM wallets WHERE {_OURS} AND online <> {balance}"  # noqa: S608 - our own text
    async with sql.reading(engine) as connection:
        count: int = (await connection.exec_driver_sql(query)).scalar_one()
    return count


def past(age: timedelta = _NEWEST_AGE) -> datetime:
    """An instant in the past that everything made here is older than."""
    return datetime.now(UTC) - age


def _clock(now: datetime, age: timedelta, count: int) -> tuple[int, int]:
    """When number 0 was, in microseconds since 1970, and how long it is to the next."""
    step = max(1, (age - _NEWEST_AGE) // timedelta(microseconds=1) // max(1, count))
    return sql.micros(now - age), step


def _made_id(kind: str, number: int, clock: tuple[int, int]) -> UUID:
    """A UUIDv7 as `_made_sql` makes it."""
    millis = (clock[0] + number * clock[1]) // 1_000
    random = hashlib.md5(f"{kind}{number}".encode(), usedforsecurity=False).hexdigest()
    return UUID(f"{millis:012x}7{random[:3]}8{random[3:18]}")


def _made_sql(kind: str, number: str, clock: tuple[int, int]) -> str:
    millis = f"(({clock[0]} + ({number}) * {clock[1]}) DIV 1000)"
    # The variant's digit put where it belongs: the hash is the dear part, and made once.
    random = f"INSERT(LEFT(MD5(CONCAT('{kind}', {number})), 18), 4, 0, '8')"
    return f"UNHEX(CONCAT(LPAD(HEX({millis}), 12, '0'), '7', {random}))"


def _micros_sql(number: str, clock: tuple[int, int]) -> str:
    return f"({clock[0]} + ({number}) * {clock[1]})"


async def _fill(
    engine: AsyncEngine,
    rows: dict[sa.Table, dict[str, str]],
    count: int,
    wanted: Callable[[sa.Table], str],
) -> None:
    """Insert rows of tables, each a function of `seq`, 0 to count - 1, all tables at the same time."""
    await asyncio.gather(*(_fill_table(engine, t, e, count, wanted(t)) for t, e in rows.items()))


async def _fill_table(
    engine: AsyncEngine, table: sa.Table, expressions: dict[str, str], count: int, wanted: str
) -> None:
    # Sorted once in the end, an index costs a fraction of what it costs row by row, in random order.
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    drops = ", ".join(f"DROP INDEX {index.name}" for index in indexes)
    if drops:
        await _run(engine, f"ALTER TABLE {table.name} {drops}")
    columns = ", ".join(expressions)
    values = ", ".join(expressions.values())
    for start in range(0, count, _ROWS_AT_ONCE):
        last = min(count, start + _ROWS_AT_ONCE) - 1
        await _run(
            engine,
            f"INSERT INTO {table.name} ({columns}) SELECT {values} "  # noqa: S608 - our own text
            f"FROM seq_{start}_to_{last} WHERE {wanted}",
        )
    adds = ", ".join(
        f"ADD INDEX {index.name} ({', '.join(column.name for column in index.columns)})"
        for index in indexes
    )
    if adds:
        await _run(engine, f"ALTER TABLE {table.name} {adds}")


async def _run(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        # As the driver takes it: every "%" that is no placeholder stands twice.
        await connection.exec_driver_sql(statement.replace("%", "%%"), ())
