"""`tallystick bench offline`: what terminals bring back from where there was no network, settled, and the books.

Codes are issued, terminals enrolled, journals signed and uploaded through the gateway, as by real ones. Two figures:
how long one terminal with a day's work waits for its last result, and how fast the items of many are settled.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import UUID, uuid4

from bench import plot, report, stack, tills
from bench.measured import Bench, Measured
from bench.processes import cpu_seconds
from bench.seed import CURRENCY, MONEY_EACH, set_aside
from bench.stack import Variant
from bench.tills import CODE_VALUE, CODES_EACH, Till
from cli.process import StartError
from pos.platform import Platform
from services import names, sql
from services.payment import audit, store
from services.payment.domain.ledger import Bucket, WalletKey
from services.payment.domain.payment import Channel
from services.payment.domain.payment import State as PaymentState
from services.payment.rows import wallet_key
from tallystick.offline.v1 import offline_pb2, terminal_sync_service_pb2

# As a terminal uploads: the contract's most.
_ENTRIES_PER_BATCH = 500
_BACKLOG_ITEMS = 1_000
_TERMINALS = 10
_SETTLED_SECONDS_MAX = 120.0
_SHOWN_MAX = 10
_ROWS_AT_ONCE = 1_000
_CLIENT = "client"
# Every bucket, for codes of thousands that are asked for within seconds.
_WIDE = {
    f"RATE_{name}": "1000000/1000000/60000"
    for name in ("PUBLIC", "PAYMENT", "READ", "WRITE", "TERMINAL", "OPERATOR")
}
_PAYMENT_STATE = {
    offline_pb2.Item.STATE_SETTLED: PaymentState.SUCCESS,
    offline_pb2.Item.STATE_HELD: PaymentState.FLAGGED,
}


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        profile: `dev` or `mysql`.
        items: Uploaded by ten terminals together.
        json_file: Where the report goes as JSON; None for nowhere.
        plots: A directory for plots; None for none.
    """

    profile: str
    items: int
    json_file: Path | None
    plots: Path | None


def run(options: Options) -> int:
    """Measure, print, write; 1 when the books do not match what terminals were told.

    Raises:
        SettingError: it cannot be measured so.
        StartError: a stack did not start, or did not settle what it took.
    """
    stack.check_environment()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tallystick-bench-") as directory:
        bench = Bench(options.profile, 1, Path(directory), console)
        found = asyncio.run(_measure(options, bench))
    report.write(found, options.json_file, options.plots, _plots(found))
    _show(found, console)
    return 0 if found["books_match"] else 1


async def _measure(options: Options, bench: Bench) -> dict[str, Any]:
    each = max(1, options.items // _TERMINALS)
    wanted = _BACKLOG_ITEMS + each * _TERMINALS
    payers = -(-wanted // CODES_EACH)
    async with bench.stack("offline", Variant(variables=_WIDE), payers=payers) as measured:
        endpoints = measured.endpoints
        await set_aside(endpoints, measured.world.payers, CODES_EACH * CODE_VALUE)
        async with Platform(endpoints.grpc, Path(endpoints.ca_file)) as platform:
            bench.say(f"issuing {payers * CODES_EACH:,} codes")
            began = time.monotonic()
            codes = await tills.issue(measured)
            issuing_seconds = time.monotonic() - began
            # A wallet's codes are spent all over the town.
            random.Random(1).shuffle(codes)  # noqa: S311 - a load, repeatable on purpose
            one, *many = await tills.enrol(measured, platform, 1 + _TERMINALS)
            one.sell(codes[:_BACKLOG_ITEMS])
            for number, till in enumerate(many):
                start = _BACKLOG_ITEMS + number * each
                till.sell(codes[start : start + each])
            await bench.rest("backlog", endpoints)
            bench.say(f"{_BACKLOG_ITEMS:,} items of one terminal")
            backlog = await _uploaded(measured, platform, [one])
            await bench.rest("terminals", endpoints)
            bench.say(f"{each * _TERMINALS:,} items of {_TERMINALS} terminals")
            together = await _uploaded(measured, platform, many)
        laws = await _check(measured, [one, *many], bench)
    return {
        "items_settled_per_second": round(together["settled"] / together["seconds"], 1),
        "backlog_1000_seconds": backlog["seconds"],
        "backlog": backlog,
        "terminals": together,
        "codes_issued_per_second": round(len(codes) / issuing_seconds, 1),
        "laws": laws,
        "settings": {
            "profile": options.profile,
            "items": each * _TERMINALS,
            "terminals": _TERMINALS,
            "entries_per_batch": _ENTRIES_PER_BATCH,
            "payers": payers,
            "variables": stack.own_variables(),
        },
        **bench.circumstances(),
    }


async def _uploaded(
    measured: Measured, platform: Platform, uploading: Sequence[Till]
) -> dict[str, Any]:
    """Let terminals upload all at the same time; until every item has a result."""
    # The supervisor is this process, which is the terminals as well.
    processes = {
        name: pid for name, pid in measured.endpoints.processes.items() if pid != os.getpid()
    }
    before, own = cpu_seconds(processes), time.process_time()
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_SETTLED_SECONDS_MAX):
            first_received = await asyncio.gather(*(_sync(platform, till) for till in uploading))
    except TimeoutError:
        raise StartError(
            f"Not every item had a result after {_SETTLED_SECONDS_MAX:.0f} s."
        ) from None
    seconds = time.perf_counter() - began
    after = cpu_seconds(processes)
    used = {name: after[name] - before[name] for name in processes}
    used[_CLIENT] = time.process_time() - own
    found = [item for till in uploading for item in till.items.values()]
    states = Counter(item.state for item in found)
    return {
        "items": sum(len(till.entries) for till in uploading),
        "settled": states[offline_pb2.Item.STATE_SETTLED],
        "seconds": round(seconds, 3),
        "received_seconds": round(max(first_received) - began, 3),
        "reasons": dict(
            Counter(offline_pb2.Reason.Name(item.reason).removeprefix("REASON_") for item in found)
        ),
        "cpu_us_per_item": {
            name: round(spent / max(1, len(found)) * 1e6, 1)
            for name, spent in sorted(used.items(), key=lambda one: -one[1])
        },
        "cores_used": round(sum(used.values()) / seconds, 2),
    }


async def _sync(platform: Platform, till: Till) -> float:
    """Upload a journal, batch after batch, and watch for results meanwhile. Answers when the last receipt came."""
    async with asyncio.TaskGroup() as watching:
        for start in range(0, len(till.entries), _ENTRIES_PER_BATCH):
            request = terminal_sync_service_pb2.SubmitBatchRequest(
                request_id=str(uuid4()),
                terminal=till.name,
                entries=till.entries[start : start + _ENTRIES_PER_BATCH],
            )
            answer = await platform.submit(till.who, request)
            watching.create_task(_watch(platform, till, answer.batch.name))
        received = time.perf_counter()
    # Not from within: the group ends when every result has come.
    return received  # noqa: RET504


async def _watch(platform: Platform, till: Till, batch: str) -> None:
    async for message in platform.watch(till.who, batch):
        till.items.update((item.name, item) for item in message.items)


async def _check(measured: Measured, uploaded: Sequence[Till], bench: Bench) -> dict[int, bool]:
    """Hold payments and balances against what terminals were told, item by item, then check the laws."""
    engine = sql.create_engine(measured.ledger_url)
    try:
        stored = await _payments(engine)
        wrong = differences(stored, uploaded)
        owners = [*measured.world.payers, *(till.vendor_id for till in uploaded)]
        balances = await _balances(engine, owners)
        findings = await audit.check(engine)
    finally:
        await engine.dispose()
    wrong += wrong_balances(balances, uploaded, measured.world.payers)
    wrong += [
        f"law {number}: {finding.first_broken}"
        for number, finding in findings.items()
        if not finding.holds
    ]
    bench.wrong += wrong[:_SHOWN_MAX]
    if len(wrong) > _SHOWN_MAX:
        bench.wrong.append(f"and {len(wrong) - _SHOWN_MAX} more")
    return {number: finding.holds for number, finding in findings.items()}


@dataclass(frozen=True)
class Paid:
    """An offline payment, as far as both sides know of it."""

    payer: UUID
    vendor: UUID
    amount: int
    state: int


def differences(stored: Mapping[str, Paid], uploaded: Iterable[Till]) -> list[str]:
    """Where payments and what terminals were told part.

    Args:
        stored: Every offline payment by name.
        uploaded: The terminals, with what they were told.
    """
    wrong = []
    told: set[str] = set()
    for till in uploaded:
        for name, code in till.codes.items():
            item = till.items.get(name)
            if item is None:
                wrong.append(f"{name}: never told of")
                continue
            state = _PAYMENT_STATE.get(item.state)
            if state is None:
                reason = offline_pb2.Reason.Name(item.reason)
                wrong.append(f"{name}: a good code, and {reason}: {item.detail}")
                continue
            if item.payment in told:
                wrong.append(f"{name}: {item.payment} is another item's")
            told.add(item.payment)
            asked = Paid(code.owner, till.vendor_id, CODE_VALUE, state)
            if stored.get(item.payment) != asked:
                wrong.append(f"{name}: told {asked}, stored {stored.get(item.payment)}")
    wrong += [f"{name}: stored, and told to nobody" for name in stored.keys() - told]
    return wrong


def wrong_balances(
    balances: Mapping[UUID, Mapping[Bucket, int]], uploaded: Iterable[Till], payers: Iterable[UUID]
) -> list[str]:
    """Where balances are not what items make them: reserved money went to vendors, or is held, or is reserved still."""
    aside = CODES_EACH * CODE_VALUE
    expected: dict[UUID, Counter[Bucket]] = {
        payer: Counter({Bucket.ONLINE: MONEY_EACH - aside, Bucket.RESERVED: aside})
        for payer in payers
    }
    for till in uploaded:
        vendor = expected.setdefault(till.vendor_id, Counter())
        for name, item in till.items.items():
            state = _PAYMENT_STATE.get(item.state)
            if state is None or name not in till.codes:
                continue
            payer = expected[till.codes[name].owner]
            payer[Bucket.RESERVED] -= item.amount.minor_units
            if state is PaymentState.SUCCESS:
                vendor[Bucket.ONLINE] += item.amount.minor_units
            else:
                payer[Bucket.HELD] += item.amount.minor_units
    return [
        f"{names.user_name(owner)}: {bucket.name} is {found[bucket]}, what was told makes "
        f"{expected[owner][bucket]}"
        for owner, found in balances.items()
        for bucket in Bucket
        if found[bucket] != expected[owner][bucket]
    ]


async def _payments(engine: AsyncEngine) -> dict[str, Paid]:
    table = store.payments
    columns = (
        table.c.payment_id,
        table.c.payer_wallet,
        table.c.vendor_wallet,
        table.c.amount,
        table.c.state,
    )
    query = sa.select(*columns).where(table.c.channel == int(Channel.OFFLINE))
    async with sql.reading(engine) as connection:
        return {
            names.payment_name(row.payment_id): Paid(
                wallet_key(row.payer_wallet).owner_id,
                wallet_key(row.vendor_wallet).owner_id,
                row.amount,
                row.state,
            )
            for row in await connection.execute(query)
        }


async def _balances(engine: AsyncEngine, owners: Sequence[UUID]) -> dict[UUID, dict[Bucket, int]]:
    found: dict[UUID, dict[Bucket, int]] = {}
    async with sql.reading(engine) as connection:
        for start in range(0, len(owners), _ROWS_AT_ONCE):
            keys = [WalletKey(owner, CURRENCY) for owner in owners[start : start + _ROWS_AT_ONCE]]
            for key, wallet in (await store.read_wallets(connection, keys)).items():
                found[key.owner_id] = {bucket: wallet.balance(bucket) for bucket in Bucket}
    return found


def _plots(found: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name."""
    order = list(found["terminals"]["cpu_us_per_item"])
    return {
        "offline-cost.svg": plot.bars(
            "CPU of one offline item by process",
            "µs",
            {
                words: {part: found[name]["cpu_us_per_item"][part] for part in order}
                for name, words in (
                    ("backlog", "one terminal"),
                    ("terminals", f"{found['settings']['terminals']} terminals"),
                )
            },
        )
    }


def _show(found: Mapping[str, Any], console: Console) -> None:
    settings = found["settings"]
    one, many = found["backlog"], found["terminals"]
    rows = report.table(
        f"offline items, profile {settings['profile']}",
        "one terminal",
        f"{settings['terminals']} terminals",
    )
    both = (one, many)
    rows.add_row("items", *(f"{each['items']:,}" for each in both))
    rows.add_row("all received after, s", *(f"{each['received_seconds']:.2f}" for each in both))
    rows.add_row("all results after, s", *(f"{each['seconds']:.2f}" for each in both))
    rows.add_row("settled /s", *(f"{each['settled'] / each['seconds']:,.0f}" for each in both))
    for reason in dict.fromkeys((*one["reasons"], *many["reasons"])):
        rows.add_row(f"told {reason}", *(f"{each['reasons'].get(reason, 0):,}" for each in both))
    rows.add_row("cores busy", *(f"{each['cores_used']:.2f}" for each in both))
    for name in many["cpu_us_per_item"]:
        rows.add_row(f"CPU µs, {name}", *(f"{each['cpu_us_per_item'][name]:,.0f}" for each in both))
    rows.add_row("codes issued /s, on the way", "", f"{found['codes_issued_per_second']:,.0f}")
    console.print(rows)
    report.show_circumstances(found, console)
