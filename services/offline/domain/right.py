"""How far somebody may spend offline."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from services.offline.domain import refusals
from services.offline.domain.code import Code, State

# What REDUCED leaves of a cap.
_REDUCED_DIVISOR = 4


class Level(enum.IntEnum):
    """The numbers of `offline.v1.OfflineRight.Level`, the lower right the higher; stored; never renumbered."""

    NORMAL = 1
    REDUCED = 2
    SUSPENDED = 3


class Source(enum.Enum):
    """Who sets levels, each its own."""

    ADMIN = "admin"
    FRAUD = "fraud"
    DOUBLE_SPEND = "double_spend"


@dataclass(frozen=True, slots=True)
class Right:
    """Somebody's right. The lowest level that any source has set counts.

    Attributes:
        owner_id: Whose.
        admin: What an admin has set.
        fraud: What the fraud service has set.
        double_spend: What double spends have set.
        reason: Why it last changed.
        update_time: When.
    """

    owner_id: UUID
    admin: Level
    fraud: Level
    double_spend: Level
    reason: str
    update_time: datetime

    @property
    def level(self) -> Level:
        """The one that counts."""
        return max(self.admin, self.fraud, self.double_spend)

    def cap(self, normal: int) -> int:
        """Minor units that live codes may be worth together.

        Args:
            normal: The deployment's cap.
        """
        if self.level is Level.SUSPENDED:
            return 0
        return normal // _REDUCED_DIVISOR if self.level is Level.REDUCED else normal


def normal(owner_id: UUID, *, now: datetime) -> Right:
    """The right of somebody nothing is known about."""
    return Right(owner_id, Level.NORMAL, Level.NORMAL, Level.NORMAL, "", now)


def set_level(right: Right, source: Source, level: Level, reason: str, *, now: datetime) -> Right:
    """Let a source set its level. An admin's NORMAL also forgives double spends. What changes nothing is not recorded."""
    changed = replace(right, **{source.value: level})
    if source is Source.ADMIN and level is Level.NORMAL:
        changed = replace(changed, double_spend=Level.NORMAL)
    if changed == right:
        return right
    return replace(changed, reason=reason, update_time=now)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a deployment issues.

    Attributes:
        issuer: Its name, part of what codes are signed over.
        tiers: Minor units of each tier, by currency; a tier's number is its place.
        scopes: Areas.
        cap: Minor units a wallet's live codes may be worth together, with a NORMAL right.
        live_codes_max: Codes a wallet may have.
        spend_days: From the day of issue to the last day a code may be spent.
        upload_hours: From a code's expiry to its release.
    """

    issuer: str
    tiers: dict[str, tuple[int, ...]]
    scopes: tuple[str, ...]
    cap: int
    live_codes_max: int
    spend_days: int
    upload_hours: int


def check_may_issue(
    right: Right, terms: Terms, currency: str, values: Collection[int], codes: Collection[Code]
) -> None:
    """Let somebody have codes of some values.

    Args:
        right: Theirs.
        terms: The deployment's.
        currency: Of all of them.
        values: Minor units of each.
        codes: Theirs that may still cost money.

    Raises:
        Refusal: offline_suspended, too_many_codes, offline_cap_exceeded; in this order.
    """
    if right.level is Level.SUSPENDED:
        raise refusals.offline_suspended(right.reason)
    live = sum(code.state in {State.RESERVING, State.ISSUED} for code in codes)
    if live + len(values) > terms.live_codes_max:
        raise refusals.too_many_codes(terms.live_codes_max, live)
    worth = sum(code.minor_units for code in codes if code.currency == currency)
    cap = right.cap(terms.cap)
    if worth + sum(values) > cap:
        raise refusals.offline_cap_exceeded(cap, worth, currency)
