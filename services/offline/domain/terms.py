"""What a deployment issues: values, areas, caps, times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from services.money import Money

# A typed answer on paper can be kept in order by a person up to about so many (design, section 5.1).
LIVE_CODES_MAX = 10


@dataclass(frozen=True, slots=True)
class TerminalLimits:
    """What a terminal may keep without network before it must sync.

    Attributes:
        stored_max: Minor units, for each currency.
        count_max: Payments.
        minutes_max: Since the newest trust bundle.
    """

    stored_max: int = 100_000_00
    count_max: int = 10_000
    minutes_max: int = 72 * 60


@dataclass(frozen=True, slots=True)
class Terms:
    """What this deployment issues.

    Attributes:
        issuer: The issuer's name, part of what every code is signed over; at most 64 bytes.
        currencies: ISO 4217 codes.
        values: What a code may be worth, in minor units of any currency, ascending; the place is the tier.
        cap: What a wallet's live codes may be worth together, in minor units, with a NORMAL right.
        scopes: Areas.
        spend_days: Days a code may be spent after the day it is issued.
        upload: How long after its expiry a sale may still arrive.
        keyset_age: When a keyset is replaced by itself.
        terminal: What a terminal may keep without network.
    """

    issuer: str = "Tallystick"
    currencies: frozenset[str] = frozenset({"INR"})
    values: tuple[int, ...] = (10_00, 20_00, 50_00, 100_00, 200_00, 500_00)
    cap: int = 2_000_00
    scopes: frozenset[str] = frozenset({"main"})
    spend_days: int = 3
    upload: timedelta = timedelta(hours=96)
    keyset_age: timedelta = timedelta(days=14)
    terminal: TerminalLimits = TerminalLimits()

    @property
    def code_life(self) -> timedelta:
        """Longer than any code issued now may be spent: to the end of its last day."""
        return timedelta(days=self.spend_days + 1)

    @property
    def upload_hours(self) -> int:
        """`upload`, in hours."""
        return self.upload // timedelta(hours=1)

    def moneys(self, minor_units: int) -> list[Money]:
        """The same sum in every currency."""
        return [Money(minor_units, code) for code in sorted(self.currencies)]
