"""Whether a terminal takes a code: every check, in the order of design section 5.2, each with its own reason.

Pure: what the terminal knows comes in as values, the answer goes out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from uuid_utils import UUID

from pos.lockout import Lockout
from protocol import code as codes
from protocol import issued_filter, voucher
from protocol.code import Code, CodeInvalid, Flaw
from protocol.voucher import Spend, VoucherInvalid

# How far the clock of a payer's device may be off.
SIGN_TOLERANCE = timedelta(minutes=10)
# Minor units travel as 64-bit integers.
AMOUNT_MAX = (1 << 63) - 1


class Refusal(enum.Enum):
    """Why a code was not taken."""

    LOCKED = "LOCKED"
    NEVER_SYNCED = "NEVER_SYNCED"
    MOVED = "MOVED"
    AMOUNT_INVALID = "AMOUNT_INVALID"
    CODE_LENGTH = "CODE_LENGTH"
    CODE_SYMBOL = "CODE_SYMBOL"
    CHECK_SYMBOL = "CHECK_SYMBOL"
    VOUCHER_INVALID = "VOUCHER_INVALID"
    KEYSET_UNKNOWN = "KEYSET_UNKNOWN"
    EXPIRED = "EXPIRED"
    AMOUNT_OVER_VALUE = "AMOUNT_OVER_VALUE"
    TAG_WRONG = "TAG_WRONG"
    SPENT_HERE = "SPENT_HERE"
    REVOKED = "REVOKED"
    NOT_ISSUED = "NOT_ISSUED"
    PAYMENT_OVER_LIMIT = "PAYMENT_OVER_LIMIT"
    STORED_TOTAL_OVER_LIMIT = "STORED_TOTAL_OVER_LIMIT"
    STORED_COUNT_OVER_LIMIT = "STORED_COUNT_OVER_LIMIT"
    MUST_SYNC = "MUST_SYNC"


# A guess, not a slip: the symbols belong together, and still there is no such code.
GUESSES = frozenset({Refusal.KEYSET_UNKNOWN, Refusal.TAG_WRONG, Refusal.NOT_ISSUED})


class Warning(enum.Enum):  # noqa: A001 - that is what it is
    """What comes near a limit."""

    STORED_TOTAL = "STORED_TOTAL"
    STORED_COUNT = "STORED_COUNT"
    SYNC_SOON = "SYNC_SOON"


@dataclass(frozen=True, slots=True)
class Typed:
    """A code as typed or read aloud."""

    text: str


@dataclass(frozen=True, slots=True)
class VoucherShown:
    """A voucher and the payer's signature under this sale."""

    data: bytes
    sign_seconds: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Key:
    """A keyset of the terminal's area."""

    key: bytes = field(repr=False)  # a secret, and no matter for a traceback
    epoch_time: datetime


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be taken without network, in one currency. Beyond soft is a warning, beyond hard a refusal."""

    payment_max: int
    stored_soft: int
    stored_hard: int
    count_soft: int
    count_hard: int
    age_soft: timedelta
    age_hard: timedelta


@dataclass(frozen=True, slots=True)
class Terms:
    """What a trust bundle says.

    Attributes:
        version: Its number.
        server_time: When it was made.
        issuer: Part of what codes are signed over.
        scope: The terminal's area.
        tiers: Minor units by (tier, currency).
        keys: Keysets by number.
        issuer_keys: Public keys by id.
        denied: Filter keys of codes that were stopped.
        issued: The filter of codes there are.
        issued_time: It knows every code issued before this.
        limits: By currency.
        spend_days: From a code's issue to its last day.
    """

    version: int
    server_time: datetime
    issuer: str
    scope: str
    tiers: Mapping[tuple[int, str], int]
    keys: Mapping[int, Key]
    issuer_keys: Mapping[str, bytes]
    denied: frozenset[int]
    issued: bytes
    issued_time: datetime
    limits: Mapping[str, Limits]
    spend_days: int


@dataclass(frozen=True, slots=True)
class Situation:
    """What a terminal knows when somebody pays.

    Attributes:
        now: Trusted time.
        terms: Of the trust bundle in force; None before the first sync.
        moved: The journal went to another installation.
        lockout: The ladder.
        vendor_id: Whose terminal.
        terminal_id: Which.
        is_spent: Whether this terminal took a code before, by its symbols.
        stored_count: Sales that the server does not have yet.
        stored: Their minor units, by currency.
    """

    now: datetime
    terms: Terms | None
    moved: bool
    lockout: Lockout
    vendor_id: UUID
    terminal_id: UUID
    is_spent: Callable[[str], bool]
    stored_count: int
    stored: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer at the counter.

    Attributes:
        refusal: Why not; None when the code is taken, provisionally.
        message: What to tell the payer.
        warnings: What comes near a limit.
        symbols: The code's, once they are known to belong together.
        value: What the code is worth, once that is known.
        item_id: The sale's id, once it is on disk.
    """

    refusal: Refusal | None
    message: str
    warnings: tuple[Warning, ...] = ()
    symbols: str = ""
    value: int = 0
    item_id: UUID | None = None

    @property
    def approved(self) -> bool:
        """APPROVED OFFLINE (provisional)."""
        return self.refusal is None


class _No(Exception):
    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.message = message


def decide(
    shown: Typed | VoucherShown, minor_units: int, currency: str, situation: Situation
) -> Decision:
    """Check a code, and say what to do.

    Order: locked, bundle, amount; symbols, check symbol (or the voucher's signatures); keyset; expiry; value; tag;
    spent here; revoked; issued; limits of a payment, of what is stored, of the time since the last sync.
    """
    seen = _Seen()
    try:
        warnings = _examine(shown, minor_units, currency, situation, seen)
    except _No as no:
        return Decision(no.refusal, no.message, symbols=seen.symbols, value=seen.value)
    message = "APPROVED OFFLINE (provisional)"
    return Decision(None, message, warnings, seen.symbols, seen.value)


@dataclass(slots=True)
class _Seen:
    """What was found out before a refusal."""

    symbols: str = ""
    value: int = 0


def _examine(
    shown: Typed | VoucherShown,
    minor_units: int,
    currency: str,
    situation: Situation,
    seen: _Seen,
) -> tuple[Warning, ...]:
    terms = _may_look(situation)
    if not 0 < minor_units <= AMOUNT_MAX:
        raise _No(Refusal.AMOUNT_INVALID, "The amount must be above zero, and one that can be.")
    record, seen.symbols = _read(shown, minor_units, currency, situation, terms)
    key = terms.keys.get(record.keyset)
    if key is None:
        raise _No(
            Refusal.KEYSET_UNKNOWN,
            "This code was made with a key this terminal does not have. Sync, then try again.",
        )
    if situation.now >= codes.expire_time(key.epoch_time, record.expiry_day):
        raise _No(Refusal.EXPIRED, "This code has expired.")
    seen.value = _value(shown, record, currency, terms)
    if minor_units > seen.value:
        raise _No(Refusal.AMOUNT_OVER_VALUE, "This code is not worth that much.")
    # A voucher's tag was made here, and its signatures say more.
    if isinstance(shown, Typed) and not codes.verify(
        record, key=key.key, issuer=terms.issuer, currency=currency
    ):
        raise _No(Refusal.TAG_WRONG, "There is no such code.")
    _look_up(seen.symbols, record, key, situation, terms)
    return _limits(minor_units, currency, situation, terms)


def _may_look(situation: Situation) -> Terms:
    left = situation.lockout.left(situation.now)
    if left is not None:
        seconds = round(left.total_seconds()) or 1
        raise _No(
            Refusal.LOCKED, f"Too many wrong codes. Codes are looked at again in {seconds} s."
        )
    if situation.moved:
        raise _No(
            Refusal.MOVED, "This terminal's journal was exported. Sell where it was imported."
        )
    if situation.terms is None:
        raise _No(
            Refusal.NEVER_SYNCED, "This terminal has never synced. It needs the network once."
        )
    return situation.terms


_FLAWS = {
    Flaw.LENGTH: Refusal.CODE_LENGTH,
    Flaw.SYMBOL: Refusal.CODE_SYMBOL,
    Flaw.CHECK: Refusal.CHECK_SYMBOL,
}


def _read(
    shown: Typed | VoucherShown,
    minor_units: int,
    currency: str,
    situation: Situation,
    terms: Terms,
) -> tuple[Code, str]:
    """The record behind what was shown, and its symbols."""
    if isinstance(shown, Typed):
        try:
            record = codes.parse(shown.text)
        except CodeInvalid as invalid:
            raise _No(_FLAWS[invalid.flaw], str(invalid)) from invalid
        return record, record.symbols()
    spend = Spend(
        situation.vendor_id, situation.terminal_id, minor_units, currency, shown.sign_seconds
    )
    try:
        said = voucher.verify(shown.data, terms.issuer_keys)
        voucher.verify_spend(shown.data, spend, shown.signature)
    except VoucherInvalid as invalid:
        raise _No(Refusal.VOUCHER_INVALID, str(invalid)) from invalid
    if (said.issuer, said.scope, said.currency) != (terms.issuer, terms.scope, currency):
        raise _No(Refusal.VOUCHER_INVALID, "This voucher is for another place or currency.")
    if abs(situation.now.timestamp() - shown.sign_seconds) > SIGN_TOLERANCE.total_seconds():
        raise _No(Refusal.VOUCHER_INVALID, "The payer's device signed at another time. Sign again.")
    key = terms.keys.get(said.keyset)
    if key is None:
        return Code(said.serial, 0, said.keyset, said.tier, said.expiry_day), ""
    record = codes.make(
        said.serial,
        said.keyset,
        said.tier,
        said.expiry_day,
        key=key.key,
        issuer=terms.issuer,
        currency=currency,
    )
    return record, record.symbols()


def _value(shown: Typed | VoucherShown, record: Code, currency: str, terms: Terms) -> int:
    if isinstance(shown, VoucherShown):
        return voucher.decode(shown.data).minor_units
    value = terms.tiers.get((record.tier, currency))
    if value is None:
        raise _No(Refusal.AMOUNT_OVER_VALUE, f"This code is worth nothing in {currency}.")
    return value


def _look_up(symbols: str, record: Code, key: Key, situation: Situation, terms: Terms) -> None:
    if situation.is_spent(symbols):
        raise _No(Refusal.SPENT_HERE, "This code was spent here before.")
    mark = codes.filter_key(key.key, symbols)
    if mark in terms.denied:
        raise _No(Refusal.REVOKED, "This code was revoked.")
    issued = codes.issue_day_time(key.epoch_time, record.expiry_day, terms.spend_days)
    # A code issued on the day the filter was made, or after it, may be younger than the filter.
    if issued + timedelta(days=1) <= terms.issued_time and not issued_filter.contains(
        terms.issued, mark
    ):
        raise _No(Refusal.NOT_ISSUED, "There is no such code.")


def _limits(
    minor_units: int, currency: str, situation: Situation, terms: Terms
) -> tuple[Warning, ...]:
    limits = terms.limits.get(currency)
    if limits is None or minor_units > limits.payment_max:
        raise _No(Refusal.PAYMENT_OVER_LIMIT, "This is more than one offline payment may be.")
    total = situation.stored.get(currency, 0) + minor_units
    if total > limits.stored_hard:
        raise _No(Refusal.STORED_TOTAL_OVER_LIMIT, "Too much is stored already. Sync first.")
    count = situation.stored_count + 1
    if count > limits.count_hard:
        raise _No(Refusal.STORED_COUNT_OVER_LIMIT, "Too many sales are stored already. Sync first.")
    age = situation.now - terms.server_time
    if age > limits.age_hard:
        raise _No(Refusal.MUST_SYNC, "The last sync was too long ago. MUST SYNC.")
    warnings = []
    if total > limits.stored_soft:
        warnings.append(Warning.STORED_TOTAL)
    if count > limits.count_soft:
        warnings.append(Warning.STORED_COUNT)
    if age > limits.age_soft:
        warnings.append(Warning.SYNC_SOON)
    return tuple(warnings)
