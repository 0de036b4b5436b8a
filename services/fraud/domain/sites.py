"""Where every vendor sells, in memory: what the checks measure from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.fraud.domain.assessment import Site

# Seconds for which a name nobody knows is not asked about again. An event about it counts at once.
ABSENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class VendorSites:
    """All sites of one vendor, open and closed.

    Attributes:
        version: The account's version they were read at; the greater one is the newer truth.
        sites: Oldest first.
    """

    version: int
    sites: tuple[Site, ...]


class SiteIndex:
    """The newest known sites of every vendor, whatever order news of them comes in.

    Holds also what is not in the table yet (`take_changed`) and which names are nobody's
    (`mark_absent`).
    """

    def __init__(self) -> None:
        self._vendors: dict[str, VendorSites] = {}
        self._changed: dict[str, VendorSites] = {}
        # Name -> when to ask again. Every entry lives equally long, so the first one expires first.
        self._absent: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._vendors)

    def load(self, vendors: Mapping[str, VendorSites]) -> None:
        """Take up what the table holds."""
        self._vendors.update(vendors)

    def apply(self, vendor: str, news: VendorSites) -> None:
        """Take news of a vendor; what is older than what is known is dropped."""
        self._absent.pop(vendor, None)
        known = self._vendors.get(vendor)
        if known is not None and (news.version < known.version or news == known):
            return
        self._vendors[vendor] = news
        self._changed[vendor] = news

    def find(self, vendor: str) -> tuple[Site, ...]:
        """A vendor's sites; none when the vendor is not known."""
        known = self._vendors.get(vendor)
        return () if known is None else known.sites

    def unknown(self, vendors: Iterable[str], *, at: float) -> set[str]:
        """Those of some vendors to ask the user service about, at a time in seconds."""
        return {
            vendor
            for vendor in vendors
            if vendor not in self._vendors and self._absent.get(vendor, at) <= at
        }

    def mark_absent(self, vendors: Iterable[str], *, at: float) -> None:
        """Remember for ABSENT_SECONDS that the user service knows no such vendors."""
        while self._absent:
            first = next(iter(self._absent))
            if self._absent[first] > at:
                break
            del self._absent[first]
        for vendor in vendors:
            self._absent.pop(vendor, None)
            self._absent[vendor] = at + ABSENT_SECONDS

    def names(self) -> list[str]:
        """Every known vendor."""
        return list(self._vendors)

    def take_changed(self) -> dict[str, VendorSites]:
        """What has changed since this was last asked, for the table."""
        changed, self._changed = self._changed, {}
        return changed

    def put_back(self, changed: Mapping[str, VendorSites]) -> None:
        """The table could not take what `take_changed` gave; what has changed since stays newer."""
        self._changed = {**changed, **self._changed}
