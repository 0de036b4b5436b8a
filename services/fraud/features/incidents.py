"""What went wrong with offline codes lately: codes guessed at a vendor's terminals, and codes that were spent twice.

Rules read it; the model is given nothing of it: no labelled world holds any.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

_DAY = 86_400.0


class Kind(enum.Enum):
    """What happened. The value is part of a key: it stays."""

    # Wrong codes typed in at the vendor's terminals: symbols that belong together, and no such code.
    WRONG_CODES = "w"
    # A code that the vendor's own terminals brought twice: they could tell.
    OWN_DUPLICATE = "d"
    # A payer's code that two vendors brought.
    DOUBLE_SPEND = "p"

    @property
    def half_life_seconds(self) -> float:
        """After so long half of a count is left."""
        return {
            Kind.WRONG_CODES: _DAY,
            Kind.OWN_DUPLICATE: 7 * _DAY,
            Kind.DOUBLE_SPEND: 28 * _DAY,
        }[self]


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that happened.

    Attributes:
        incident_id: What makes it count once.
        kind: What.
        user: `users/{uuid}` of the vendor, or of the payer for DOUBLE_SPEND.
        count: How often.
        occur_time: When, seconds since 1970.
    """

    incident_id: str
    kind: Kind
    user: str
    count: int
    occur_time: float


@dataclass(frozen=True, slots=True)
class Incidents:
    """What is known of a payment's sides; decayed counts, 0 for nothing.

    Attributes:
        wrong_codes: At the vendor's terminals, half-life 1 day.
        own_duplicates: Of the vendor's terminals, half-life 7 days.
        double_spends: Of the payer's codes, half-life 28 days.
    """

    wrong_codes: float = 0.0
    own_duplicates: float = 0.0
    double_spends: float = 0.0


NO_INCIDENTS = Incidents()
