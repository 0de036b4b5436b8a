"""Which tier every payer is on, in memory: what limits by tier are measured by."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace


class Tier(enum.Enum):
    """How much a payer may pay before a person must look, named as in `user.v1.User.Tier`."""

    BASIC = "BASIC"
    STANDARD = "STANDARD"
    PLUS = "PLUS"


@dataclass(frozen=True, slots=True)
class Standing:
    """A payer's tier.

    Attributes:
        version: The account's version it was read at; the greater one is the newer truth.
        tier: The tier.
    """

    version: int
    tier: Tier


class TierIndex:
    """The newest known tier of every payer, whatever order news of them comes in.

    Whoever was never above the lowest tier is not kept: that is nearly everybody, and what is said of
    somebody nobody knows. Holds also what is not in the table yet (`take_changed`).
    """

    def __init__(self) -> None:
        self._payers: dict[str, Standing] = {}
        self._changed: dict[str, Standing] = {}

    def __len__(self) -> int:
        return len(self._payers)

    def load(self, payers: Mapping[str, Standing]) -> None:
        """Take up what the table holds."""
        self._payers.update(payers)

    def apply(self, payer: str, news: Standing) -> None:
        """Take news of a payer; what is older than what is known is dropped."""
        known = self._payers.get(payer)
        if known is None:
            if news.tier is Tier.BASIC:
                return
        elif news.version < known.version or news == known:
            return
        self._payers[payer] = self._changed[payer] = news

    def find(self, payer: str) -> Tier:
        """A payer's tier; the lowest when the payer is not known."""
        known = self._payers.get(payer)
        return Tier.BASIC if known is None else known.tier

    def renew(self, above: Mapping[str, Standing]) -> None:
        """Take what the user service says of all accounts above the lowest tier.

        Args:
            above: All of them. Who is not among them is on the lowest tier by now.
        """
        for payer, news in above.items():
            self.apply(payer, news)
        for payer, known in list(self._payers.items()):
            if payer not in above:
                self.apply(payer, replace(known, tier=Tier.BASIC))

    def take_changed(self) -> dict[str, Standing]:
        """What has changed since this was last asked, for the table."""
        changed, self._changed = self._changed, {}
        return changed

    def put_back(self, changed: Mapping[str, Standing]) -> None:
        """The table could not take what `take_changed` gave; what has changed since stays newer."""
        self._changed = {**changed, **self._changed}
