"""The places a vendor sells at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from uuid_utils import UUID

from services.user.domain import refusals
from services.user.domain.user import State, User

OPEN_SITES_MAX = 100
# Every event about a vendor carries all sites on record: without a bound, opening and closing all day
# would grow those events past what a message may hold.
SITES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Position:
    """Degrees, WGS 84, and the radius in metres the device was 68 % sure to be within; 0 when it did not say."""

    latitude: float
    longitude: float
    accuracy_meters: float
    mocked: bool


@dataclass(frozen=True, slots=True)
class Site:
    """A place of business. A closed one stays on record.

    Attributes:
        user_id: The vendor.
        site_id: UUIDv7: sites sort by age.
        display_name: What is written over the door.
        position: Where it is registered; fraud checks measure from here.
        is_open: It still sells.
        create_time: UTC.
    """

    user_id: UUID
    site_id: UUID
    display_name: str
    position: Position
    is_open: bool
    create_time: datetime


def check_may_open(vendor: User, sites: Sequence[Site]) -> None:
    """Let a vendor open one more site.

    Args:
        vendor: Who asks.
        sites: All of theirs on record.

    Raises:
        Refusal: user_state_wrong, too_many_sites; in this order.
    """
    if vendor.state is not State.ACTIVE:
        raise refusals.user_state_wrong(vendor.state.value, State.ACTIVE.value)
    if sum(site.is_open for site in sites) >= OPEN_SITES_MAX:
        raise refusals.too_many_sites(OPEN_SITES_MAX)
    if len(sites) >= SITES_MAX:
        raise refusals.too_many_sites_on_record(SITES_MAX)


def close(site: Site) -> Site:
    """Stop selling there. Closing a closed one changes nothing."""
    return replace(site, is_open=False)
