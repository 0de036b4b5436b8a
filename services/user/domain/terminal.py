"""The point-of-sale terminals of a vendor."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from uuid_utils import UUID

from services import names
from services.user.domain import refusals
from services.user.domain.session import CLOCKS_APART_MAX, token_claims
from services.user.domain.site import Site
from services.user.domain.user import State as UserState
from services.user.domain.user import User

ENROLLED_MAX = 100
DEFAULT_SCOPE = "main"
ROLE = "TERMINAL"
# How far a terminal's clock may be off, and how long an assertion of its may live.
CLOCK_TOLERANCE = timedelta(seconds=60)
ASSERTION_LIFE_MAX = timedelta(minutes=5)


class State(enum.Enum):
    """Where a terminal stands, named as in `user.v1.Terminal.State`."""

    ENROLLED = "ENROLLED"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal, known by its key.

    Attributes:
        vendor_id: Whose.
        terminal_id: UUIDv7: terminals sort by age.
        display_name: What its vendor calls it.
        site_id: Where it stands.
        scope: The area whose offline codes it takes.
        public_key: Ed25519, 32 bytes.
        state: Where it stands.
        create_time: UTC.
        revoke_time: UTC; None while it is enrolled.
        revoke_reason: In the words of who revoked it.
        version: Grows by one with every change.
    """

    vendor_id: UUID
    terminal_id: UUID
    display_name: str
    site_id: UUID
    scope: str
    public_key: bytes
    state: State
    create_time: datetime
    revoke_time: datetime | None = None
    revoke_reason: str = ""
    version: int = 1

    @property
    def name(self) -> str:
        """`users/{uuid}/terminals/{uuid}`."""
        return names.terminal_name(self.vendor_id, self.terminal_id)


def check_may_enrol(
    vendor: User, site: Site | None, site_name: str, *, key_taken: bool, enrolled: int
) -> None:
    """Let a vendor enrol one more terminal.

    Args:
        vendor: Who asks.
        site: Where it shall stand; None when the vendor has no such site.
        site_name: As asked.
        key_taken: A terminal has this key.
        enrolled: Terminals of the vendor that are not revoked.

    Raises:
        Refusal: user_state_wrong, site_not_found, terminal_key_taken, too_many_terminals; in this order.
    """
    check_vendor(vendor)
    if site is None or not site.is_open:
        raise refusals.site_not_found(site_name)
    if key_taken:
        raise refusals.terminal_key_taken()
    if enrolled >= ENROLLED_MAX:
        raise refusals.too_many_terminals(ENROLLED_MAX)


def check_vendor(vendor: User) -> None:
    """See that a terminal's vendor sells.

    Raises:
        Refusal: user_state_wrong.
    """
    if vendor.state is not UserState.ACTIVE:
        raise refusals.user_state_wrong(vendor.state.value, UserState.ACTIVE.value)


def check_may_sign_in(terminal: Terminal) -> None:
    """Let a terminal in.

    Raises:
        Refusal: terminal_revoked.
    """
    if terminal.revoke_time is not None:
        raise refusals.terminal_revoked(terminal.name, terminal.revoke_time)


def revoke(terminal: Terminal, reason: str, *, now: datetime) -> Terminal:
    """End a terminal. A revoked one stays as it is."""
    if terminal.state is State.REVOKED:
        return terminal
    return replace(
        terminal,
        state=State.REVOKED,
        revoke_time=now,
        revoke_reason=reason,
        version=terminal.version + 1,
    )


def tokens_end(revoke_time: datetime) -> datetime:
    """Tokens issued before this are refused, of a terminal revoked at `revoke_time`.

    Later than that: the replica that issued one may have a clock that is ahead, and a revoked terminal gets no other.
    """
    return revoke_time + CLOCKS_APART_MAX


def check_assertion_time(issued: datetime, expires: datetime, *, now: datetime) -> None:
    """See that an assertion was made just now.

    Raises:
        Refusal: assertion_invalid, when it claims too long a life; assertion_expired.
    """
    if not timedelta() < expires - issued <= ASSERTION_LIFE_MAX:
        raise refusals.assertion_invalid()
    if not issued - CLOCK_TOLERANCE <= now <= expires + CLOCK_TOLERANCE:
        raise refusals.assertion_expired(now)


def access_claims(
    terminal: Terminal, token_id: UUID, *, now: datetime
) -> tuple[dict[str, Any], datetime]:
    """The claims of a terminal's access token issued now, and when it expires."""
    return token_claims(terminal.name, ROLE, token_id, now=now)
