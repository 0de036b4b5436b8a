"""What `tallystick pos` does."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import re
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from pos import transfer
from pos.decision import AMOUNT_MAX, Typed, VoucherShown
from pos.enrolment import enroll
from pos.errors import PosError
from pos.journal import Sale
from pos.platform import Platform, SignedIn
from pos.status import Status
from pos.terminal import Terminal
from protocol import voucher

# Minor unit digits of currencies that have other than two (ISO 4217).
_DIGITS = {"JPY": 0, "KRW": 0, "UGX": 0, "XAF": 0, "XOF": 0, "BHD": 3, "KWD": 3, "TND": 3}
# Commas only where groups of digits end, as in 1,234,567 and 12,34,567: who writes 1,50 for 1.50 must not charge 150.
_AMOUNT = re.compile(
    r"(?P<whole>[0-9]{0,20}|[0-9]{1,3}(,[0-9]{2,3}){0,6},[0-9]{3})(\.(?P<fraction>[0-9]*))?"
)
_DONE, _REFUSED = 0, 1


@dataclass
class _Said:
    """What a command answers: for a person, and for a program."""

    code: int
    words: list[str]
    answer: dict[str, Any]


def run(options: argparse.Namespace) -> int:
    """Carry out a command; 0 when it is done or the code approved, 1 when not."""
    try:
        said = asyncio.run(_COMMANDS[options.pos_command](options))
    except PosError as error:
        said = _Said(_REFUSED, [str(error)], {"reason": error.reason, "message": str(error)})
    except (OSError, sqlite3.Error) as error:
        # A file that is not there, a disk that is full. What was not on disk was not approved.
        message = f"{error}. Nothing more was done."
        said = _Said(_REFUSED, [message], {"reason": "STORAGE_FAILED", "message": message})
    if options.json:
        print("\n".join(said.words), file=sys.stderr)
        print(json.dumps(said.answer))
    else:
        print("\n".join(said.words), file=sys.stdout if said.code == _DONE else sys.stderr)
    return said.code


async def _enroll(options: argparse.Namespace) -> _Said:
    async with Platform(options.address, options.ca_file) as platform:
        vendor = await _vendor(platform, options)
        identity = await enroll(
            options.directory,
            platform,
            vendor,
            site=options.site,
            display_name=options.name,
            scope=options.scope,
        )
    words = [f"Enrolled as {identity.name}.", "It can sell without network from now on."]
    return _Said(_DONE, words, {"terminal": identity.name, "reason": ""})


async def _accept(options: argparse.Namespace) -> _Said:
    minor_units = parse_amount(options.amount, options.currency)
    async with _terminal(options) as terminal:
        shown = parse_spend(options.spend) if options.spend else Typed(options.code)
        decision = await terminal.accept(
            shown, minor_units, options.currency, reference=options.reference
        )
    answer = {
        "decision": "APPROVED_OFFLINE" if decision.approved else "REFUSED",
        "reason": "" if decision.refusal is None else decision.refusal.value,
        "message": decision.message,
        "warnings": [warning.value for warning in decision.warnings],
        "item": "" if decision.item_id is None else f"items/{decision.item_id}",
        "amount": amount_text(minor_units, options.currency),
    }
    if decision.refusal is not None:
        return _Said(_REFUSED, [f"{decision.refusal.value}: {decision.message}"], answer)
    words = [f"{decision.message}: {answer['amount']} {options.currency}, {answer['item']}"]
    words += [f"Warning: {_WARNINGS[warning.value]}" for warning in decision.warnings]
    return _Said(_DONE, words, answer)


_WARNINGS = {
    "STORED_TOTAL": "much is stored; sync soon.",
    "STORED_COUNT": "many sales are stored; sync soon.",
    "SYNC_SOON": "the last sync was long ago; sync soon.",
}


async def _list(options: argparse.Namespace) -> _Said:
    async with _terminal(options) as terminal:
        sales = terminal.sales()
    words = [_sale_line(sale) for sale in sales] or ["No sales."]
    return _Said(_DONE, words, {"items": [_sale_answer(sale) for sale in sales]})


async def _sync(options: argparse.Namespace) -> _Said:
    lines: list[str] = []

    def progress(text: str, sale: Sale | None) -> None:
        lines.append(text if sale is None else _sale_line(sale))

    async with _terminal(options) as terminal:
        vendor = None
        if options.username:
            async with Platform(options.address, options.ca_file) as platform:
                vendor = await _vendor(platform, options)
        report = await terminal.sync(progress, vendor=vendor)
    lines.append(f"Synced: {report.uploaded} uploaded, {len(report.items)} with news.")
    items = [_sale_answer(sale) for sale in report.items]
    return _Said(_DONE, lines, {"uploaded": report.uploaded, "items": items, "reason": ""})


async def _status(options: argparse.Namespace) -> _Said:
    async with _terminal(options) as terminal:
        if options.online:
            await terminal.sync()
        status = terminal.status()
        name = terminal.identity.name
    stored = {
        currency: amount_text(minor_units, currency)
        for currency, minor_units in status.stored.items()
    }
    answer = {
        "terminal": name,
        "state": status.network.value,
        "since_sync_seconds": None
        if status.since_sync is None
        else round(status.since_sync.total_seconds()),
        "stored_count": status.stored_count,
        "stored": stored,
        "flaws": [f"entry {flaw.sequence} {flaw.what}" for flaw in status.flaws],
    }
    words = [
        f"{name}: {state_text(status)}",
        f"Stored: {status.stored_count} sales, {', '.join(f'{a} {c}' for c, a in stored.items()) or '0.00'}",
    ]
    words += [f"Journal: entry {flaw.sequence} {flaw.what}." for flaw in status.flaws]
    return _Said(_DONE, words, answer)


async def _app(options: argparse.Namespace) -> _Said:
    # Textual takes half a second to load, which the other commands need not wait.
    from pos.app.till import Till

    async with _terminal(options) as terminal:
        await Till(terminal, options.currency).run_async()
    return _Said(_DONE, ["Closed. Nothing is lost."], {"reason": ""})


async def _export(options: argparse.Namespace) -> _Said:
    passphrase = _passphrase(options)
    async with _terminal(options) as terminal:
        await transfer.export(terminal, options.directory, options.file, passphrase)
    words = [f"Exported to {options.file}. This installation takes no codes any more."]
    return _Said(_DONE, words, {"file": str(options.file), "reason": ""})


async def _import(options: argparse.Namespace) -> _Said:
    transfer.restore(options.directory, options.file, _passphrase(options))
    async with _terminal(options) as terminal:
        await terminal.note_import(options.note)
        name = terminal.identity.name
    words = [f"Imported {name}. Sync when there is network."]
    return _Said(_DONE, words, {"terminal": name, "reason": ""})


def _terminal(options: argparse.Namespace) -> Any:
    return Terminal.open(options.directory, options.address, options.ca_file)


async def _vendor(platform: Platform, options: argparse.Namespace) -> SignedIn:
    if options.password_file is not None:
        password = options.password_file.read_text().rstrip("\n")
    else:
        password = getpass.getpass(f"Password of {options.username}: ")
    return await platform.sign_in_vendor(options.username, password)


def _passphrase(options: argparse.Namespace) -> str:
    if options.passphrase_file is not None:
        text: str = options.passphrase_file.read_text().rstrip("\n")
        return text
    return getpass.getpass("Passphrase of the export: ")


def parse_spend(text: str) -> VoucherShown:
    """A voucher spend as a payer's device shows it: `TSS1:` and base 32 of seconds (8), signature (64), voucher.

    Raises:
        PosError: VOUCHER_INVALID.
    """
    try:
        data = voucher.from_text("TSS1", text)
    except voucher.VoucherInvalid as error:
        raise PosError("VOUCHER_INVALID", str(error)) from error
    seconds, signature, shown = data[:8], data[8:72], data[72:]
    return VoucherShown(shown, int.from_bytes(seconds, "big"), signature)


def parse_amount(text: str, currency: str) -> int:
    """Minor units of an amount as a person writes it.

    Raises:
        PosError: AMOUNT_INVALID.
    """
    digits = _DIGITS.get(currency, 2)
    written = _AMOUNT.fullmatch(text.strip())
    minor_units = 0
    if written is not None and len(fraction := written["fraction"] or "") <= digits:
        minor_units = int(written["whole"].replace(",", "") + fraction.ljust(digits, "0") or "0")
    if not 0 < minor_units <= AMOUNT_MAX:
        message = (
            f"{text!r} is no amount of {currency}. Give one such as {amount_text(12050, currency)}."
        )
        raise PosError("AMOUNT_INVALID", message)
    return minor_units


def amount_text(minor_units: int, currency: str) -> str:
    """`120.50`."""
    digits = _DIGITS.get(currency, 2)
    return f"{Decimal(minor_units).scaleb(-digits):,.{digits}f}"


def span_text(span: timedelta) -> str:
    """`3 h 12 m`."""
    minutes = int(span.total_seconds()) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    parts = ((days, "d"), (hours, "h"), (minutes % 60, "m"))
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0 m"


def state_text(status: Status) -> str:
    """`ONLINE`, `OFFLINE for 3 h 12 m`, `MUST SYNC`."""
    if status.since_sync is None:
        return "MUST SYNC (never synced)"
    if status.network.value == "OFFLINE":
        return f"OFFLINE for {span_text(status.since_sync)}"
    return status.network.value.replace("_", " ")


def _sale_answer(sale: Sale) -> dict[str, Any]:
    return {
        "item": f"items/{sale.item_id}",
        "sequence": sale.sequence,
        "amount": amount_text(sale.minor_units, sale.currency),
        "currency": sale.currency,
        "state": sale.state or ("RECEIVED" if sale.is_received else "STORED"),
        "reason": sale.reason,
        "detail": sale.detail,
        "returned": amount_text(sale.returned, sale.currency),
    }


def _sale_line(sale: Sale) -> str:
    answer = _sale_answer(sale)
    why = f" ({answer['detail']})" if answer["detail"] else ""
    outcome = answer["reason"] or answer["state"]
    when = sale.record_time.strftime("%Y-%m-%d %H:%M")
    return f"{sale.sequence:>6}  {when}  {answer['amount']:>12} {sale.currency}  {outcome}{why}"


_COMMANDS: dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, _Said]]] = {
    "enroll": _enroll,
    "accept": _accept,
    "list": _list,
    "sync": _sync,
    "status": _status,
    "app": _app,
    "export": _export,
    "import": _import,
}
