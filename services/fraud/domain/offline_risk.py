"""How far a payer may be trusted offline, by what became of their payments."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from uuid_utils import UUID

from services.fraud.domain.assessment import Assessment, Code

# How long a suspicion that nobody answers lasts, and how long a fraud does.
REDUCED_FOR = timedelta(days=1)
SUSPENDED_FOR = timedelta(days=30)
# A signal of this weight says something about the payer.
_SUSPICIOUS_WEIGHT = 65
# These say something about the amount or about us.
_NOT_ABOUT_PAYER = {
    Code.AMOUNT_OVER_LIMIT,
    Code.AMOUNT_OVER_REVIEW_LIMIT,
    Code.FACTS_INVALID,
    Code.POSITION_MISSING,
    Code.SITE_UNKNOWN,
    Code.HISTORY_UNAVAILABLE,
    Code.RULE_FAILED,
}


class Level(enum.IntEnum):
    """Numbered as in `event.v1.OfflineRiskChanged.Level`: a greater one is trusted less."""

    NORMAL = 1
    REDUCED = 2
    SUSPENDED = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """A payer's level, the payment it is for, and until when."""

    level: Level
    payment_id: UUID
    expire_time: datetime


def is_suspicious(assessment: Assessment) -> bool:
    """Whether an assessment says enough against its payer to trust them less offline."""
    return any(
        signal.weight >= _SUSPICIOUS_WEIGHT and signal.code not in _NOT_ABOUT_PAYER
        for signal in assessment.signals
    )


def after_suspicion(standing: Standing | None, payment_id: UUID, now: datetime) -> Standing | None:
    """The standing after a suspicious assessment; None when nothing changes."""
    if standing is not None and standing.expire_time >= now + REDUCED_FOR / 2:
        return None
    return Standing(Level.REDUCED, payment_id, now + REDUCED_FOR)


def after_label(
    standing: Standing | None, payment_id: UUID, *, fraud: bool, now: datetime
) -> Standing | None:
    """The standing after a payment turned out to be fraud, or not; None when nothing changes.

    A payment that was honest takes back only what it caused.
    """
    if fraud:
        return Standing(Level.SUSPENDED, payment_id, now + SUSPENDED_FOR)
    if standing is None or standing.payment_id != payment_id:
        return None
    return Standing(Level.NORMAL, payment_id, now)
