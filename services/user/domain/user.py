"""An account, its states, its verbs."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from datetime import datetime

from uuid_utils import UUID

from services.user.domain import refusals

_USERNAME = re.compile(r"[a-z0-9+][a-z0-9._@+-]{2,63}")


class Role(enum.Enum):
    """What an account may do; never changed."""

    USER = "USER"
    VENDOR = "VENDOR"
    ADMIN = "ADMIN"


class State(enum.Enum):
    """Where an account stands."""

    PENDING_APPROVAL = "PENDING_APPROVAL"
    ACTIVE = "ACTIVE"
    REJECTED = "REJECTED"
    SUSPENDED = "SUSPENDED"


class Tier(enum.Enum):
    """How much an account may pay before a person must look; the fraud service has the figures."""

    BASIC = "BASIC"
    STANDARD = "STANDARD"
    PLUS = "PLUS"


_TIERED_STATES = (State.ACTIVE, State.SUSPENDED)


@dataclass(frozen=True, slots=True)
class User:
    """An account.

    Attributes:
        user_id: UUIDv7.
        username: What the person signs in with; as `fold_username` leaves it.
        display_name: What others see.
        role: What it may do.
        state: Where it stands.
        state_reason: Why, in the words of the admin who put it there; empty otherwise.
        create_time: UTC.
        update_time: UTC; when the record last changed.
        version: 1 at first; grows by one with every change of the record, sites included.
        tier: How much it may pay before a person must look.
        tier_reason: Why, in the words of the admin who chose the tier; empty while it is the first.
    """

    user_id: UUID
    username: str
    display_name: str
    role: Role
    state: State
    state_reason: str
    create_time: datetime
    update_time: datetime
    version: int
    tier: Tier = Tier.BASIC
    tier_reason: str = ""


def fold_username(typed: str) -> str | None:
    """The one spelling of a username that is stored; None when nobody can have it.

    Signing in takes any text, and databases find `admin` for `admin ` or `ÁDMIN` in some collations.
    """
    folded = typed.lower()
    return folded if _USERNAME.fullmatch(folded) else None


def register(
    user_id: UUID, username: str, display_name: str, role: Role, *, has_site: bool, now: datetime
) -> User:
    """A payer's or vendor's registration, pending approval.

    Raises:
        Refusal: site_required, for a vendor without a site and for a payer with one.
    """
    assert role is not Role.ADMIN
    if has_site != (role is Role.VENDOR):
        raise refusals.site_required(role.value)
    return User(user_id, username, display_name, role, State.PENDING_APPROVAL, "", now, now, 1)


def create_admin(user_id: UUID, username: str, display_name: str, *, now: datetime) -> User:
    """An operator, active at once."""
    return User(user_id, username, display_name, Role.ADMIN, State.ACTIVE, "", now, now, 1)


def approve(user: User, reason: str, *, now: datetime) -> User:
    """PENDING_APPROVAL → ACTIVE. An active account is answered as it is.

    Raises:
        Refusal: user_state_wrong.
    """
    if user.state is State.ACTIVE:
        return user
    return _move(user, State.PENDING_APPROVAL, State.ACTIVE, reason, now)


def reject(user: User, reason: str, *, now: datetime) -> User:
    """PENDING_APPROVAL → REJECTED, for good.

    Raises:
        Refusal: user_state_wrong.
    """
    return _move(user, State.PENDING_APPROVAL, State.REJECTED, reason, now)


def suspend(user: User, reason: str, *, by: UUID, now: datetime) -> User:
    """ACTIVE → SUSPENDED. The caller ends the sessions and revokes the tokens.

    Args:
        user: The account. Not changed.
        reason: Why.
        by: The admin who does it.
        now: UTC.

    Raises:
        Refusal: self_suspension, user_state_wrong; in this order.
    """
    if user.user_id == by:
        raise refusals.self_suspension()
    return _move(user, State.ACTIVE, State.SUSPENDED, reason, now)


def reinstate(user: User, reason: str, *, now: datetime) -> User:
    """SUSPENDED → ACTIVE. Tokens issued before the suspension stay revoked.

    Raises:
        Refusal: user_state_wrong.
    """
    return _move(user, State.SUSPENDED, State.ACTIVE, reason, now)


def change_tier(user: User, tier: Tier, reason: str, *, version: int, now: datetime) -> User:
    """Put an account on a tier. One that has it already is answered as it is.

    A suspended account may be changed too: it can be lowered before it is reinstated.

    Args:
        user: The account. Not changed.
        tier: The tier wanted.
        reason: Why.
        version: The account's as the admin read it.
        now: UTC.

    Raises:
        Refusal: tier_not_applicable, user_state_wrong, user_changed; in this order.
    """
    if user.role is Role.ADMIN:
        raise refusals.tier_not_applicable(user.role.value)
    if user.state not in _TIERED_STATES:
        needed = " or ".join(state.value for state in _TIERED_STATES)
        raise refusals.user_state_wrong(user.state.value, needed)
    if user.tier is tier:
        return user
    if user.version != version:
        raise refusals.user_changed(user.version)
    return replace(renew(user, now=now), tier=tier, tier_reason=reason)


def renew(user: User, *, now: datetime) -> User:
    """The same account after a change beside the record: its sites, its password."""
    return replace(user, update_time=now, version=user.version + 1)


def check_may_sign_in(user: User) -> None:
    """Let a person open or keep a session. Those pending approval may.

    Raises:
        Refusal: user_suspended, user_rejected.
    """
    if user.state is State.SUSPENDED:
        raise refusals.user_suspended()
    if user.state is State.REJECTED:
        raise refusals.user_rejected(user.state_reason)


def _move(user: User, needed: State, state: State, reason: str, now: datetime) -> User:
    if user.state is not needed:
        raise refusals.user_state_wrong(user.state.value, needed.value)
    return replace(renew(user, now=now), state=state, state_reason=reason)
