"""What a deployment may set of the offline service."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from protocol.code import DEFAULT_SCOPE, EXPIRY_DAYS, TIERS
from services.environment import Environment, SettingError, Tls
from services.money import MINOR_UNIT_DIGITS
from services.offline.domain.terms import TerminalLimits, Terms

_SCOPE = re.compile("[a-z0-9][a-z0-9-]{0,31}")
_ISSUER_BYTES_MAX = 64


@dataclass(frozen=True)
class Settings:
    """The offline service's settings.

    Attributes:
        listen: `host:port`; port 0 takes a free one.
        database_url: Where codes and journals live.
        redis_url: Where the event streams are.
        user_address: The user service, `host:port`.
        payment_address: The payment service, `host:port`.
        tls: Its certificate.
        key_encryption_key_file: What keys and journals are sealed with: 32 random bytes in base64 on each line.
        terms: What it issues.
        backlog_max: Items that may wait to be settled; more are refused with QUEUE_FULL.
        settle_groups: Groups of items in settlement at a time.
        sweep_ms: How often what a crash left, and what has expired, is looked for.
        drain_notice_ms: How long callers are given to notice NOT_SERVING before calls are ended.
        log_level: Least level logged.
    """

    listen: str
    database_url: str
    redis_url: str
    user_address: str
    payment_address: str
    tls: Tls
    key_encryption_key_file: Path
    terms: Terms
    backlog_max: int = 50_000
    settle_groups: int = 4
    sweep_ms: int = 2_000
    drain_notice_ms: int = 1_000
    log_level: str = "INFO"

    @classmethod
    def read(cls, environment: Environment) -> Settings:
        """Read them from the environment.

        Raises:
            SettingError: one is missing or cannot be meant.
        """
        return cls(
            listen=environment.address("LISTEN", "127.0.0.1:0"),
            database_url=environment.text("DATABASE_URL"),
            redis_url=environment.text("REDIS_URL"),
            user_address=environment.address("USER_ADDRESS"),
            payment_address=environment.address("PAYMENT_ADDRESS"),
            tls=Tls.read(environment),
            key_encryption_key_file=environment.path("KEK_FILE"),
            terms=_terms(environment),
            backlog_max=environment.integer("BACKLOG_MAX", 50_000, at_least=500),
            settle_groups=environment.integer("SETTLE_GROUPS", 4, at_least=1),
            sweep_ms=environment.integer("SWEEP_MS", 2_000, at_least=1),
            drain_notice_ms=environment.integer("DRAIN_NOTICE_MS", 1_000),
            log_level=environment.text("LOG_LEVEL", "INFO"),
        )


def _terms(environment: Environment) -> Terms:
    default = Terms()
    terms = Terms(
        issuer=environment.text("OFFLINE_ISSUER", default.issuer),
        currencies=_currencies(environment),
        values=_values(environment, default.values),
        cap=environment.integer("OFFLINE_CAP", default.cap, at_least=1),
        scopes=_scopes(environment),
        spend_days=environment.integer("OFFLINE_SPEND_DAYS", default.spend_days),
        upload=timedelta(hours=environment.integer("OFFLINE_UPLOAD_HOURS", default.upload_hours)),
        keyset_age=timedelta(
            days=environment.integer("KEYSET_DAYS", default.keyset_age.days, at_least=1)
        ),
        terminal=_terminal(environment),
    )
    if len(terms.issuer.encode()) > _ISSUER_BYTES_MAX:
        raise SettingError(
            f"TALLYSTICK_OFFLINE_ISSUER is longer than {_ISSUER_BYTES_MAX} bytes. It is part of every voucher: "
            "give a short name."
        )
    # A keyset that could not be replaced in time must still be able to say the last day of its codes.
    days = terms.keyset_age.days + terms.spend_days
    if days >= EXPIRY_DAYS:
        raise SettingError(
            f"TALLYSTICK_KEYSET_DAYS and TALLYSTICK_OFFLINE_SPEND_DAYS are {days} together. A code counts "
            f"{EXPIRY_DAYS} days: lower one of them."
        )
    if terms.values[-1] > terms.cap:
        raise SettingError(
            f"TALLYSTICK_OFFLINE_VALUES goes up to {terms.values[-1]}, above TALLYSTICK_OFFLINE_CAP, "
            f"{terms.cap}: nobody could have such a code. Lower the first or raise the second."
        )
    return terms


def _currencies(environment: Environment) -> frozenset[str]:
    currencies = frozenset(environment.text("CURRENCIES", "INR").split(","))
    unknown = currencies - MINOR_UNIT_DIGITS.keys()
    if unknown:
        raise SettingError(
            f"TALLYSTICK_CURRENCIES names {', '.join(sorted(unknown))}, whose decimals are not known. "
            "Choose from services/money.py, or add them there."
        )
    return currencies


def _values(environment: Environment, default: tuple[int, ...]) -> tuple[int, ...]:
    text = environment.text("OFFLINE_VALUES", ",".join(map(str, default)))
    parts = text.split(",")
    values = tuple(int(part) for part in parts if part.isdecimal())
    ascending = list(values) == sorted(set(values))
    if len(values) != len(parts) or not 1 <= len(values) <= TIERS or not ascending or values[0] < 1:
        raise SettingError(
            f"TALLYSTICK_OFFLINE_VALUES is {text!r}. Give 1 to {TIERS} amounts in minor units, ascending, "
            "such as 1000,2000,5000. Only ever add at the end: the place is what codes say."
        )
    return values


def _scopes(environment: Environment) -> frozenset[str]:
    text = environment.text("OFFLINE_SCOPES", DEFAULT_SCOPE)
    scopes = frozenset(text.split(","))
    if not all(_SCOPE.fullmatch(scope) for scope in scopes):
        raise SettingError(
            f"TALLYSTICK_OFFLINE_SCOPES is {text!r}. Give names of areas in small letters, digits and dashes, "
            "separated by commas, such as main,island."
        )
    return scopes


def _terminal(environment: Environment) -> TerminalLimits:
    default = TerminalLimits()
    return TerminalLimits(
        stored_max=environment.integer("OFFLINE_STORED_MAX", default.stored_max, at_least=1),
        count_max=environment.integer("OFFLINE_STORED_COUNT_MAX", default.count_max, at_least=1),
        minutes_max=environment.integer("OFFLINE_MINUTES_MAX", default.minutes_max, at_least=1),
    )
