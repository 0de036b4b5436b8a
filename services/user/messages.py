"""Domain values as the contract's messages, and back."""

from __future__ import annotations

from collections.abc import Iterable

from services import names, times
from services.user.domain.site import Position, Site
from services.user.domain.terminal import Terminal
from services.user.domain.user import Role, State, Tier, User
from tallystick.access.v1 import access_pb2
from tallystick.type.v1 import position_pb2
from tallystick.user.v1 import user_pb2


def user_message(user: User) -> user_pb2.User:
    """An account as the contract writes it."""
    message = user_pb2.User(
        name=names.user_name(user.user_id),
        username=user.username,
        display_name=user.display_name,
        role=access_pb2.Role.Value(f"ROLE_{user.role.value}"),
        state=user_pb2.User.State.Value(f"STATE_{user.state.value}"),
        state_reason=user.state_reason,
        version=user.version,
        tier=user_pb2.User.Tier.Value(f"TIER_{user.tier.value}"),
        tier_reason=user.tier_reason,
    )
    message.create_time.CopyFrom(times.timestamp(user.create_time))
    message.update_time.CopyFrom(times.timestamp(user.update_time))
    return message


def site_message(site: Site) -> user_pb2.Site:
    """A site as the contract writes it."""
    message = user_pb2.Site(
        name=names.site_name(site.user_id, site.site_id),
        display_name=site.display_name,
        position=position_pb2.Position(
            latitude=site.position.latitude,
            longitude=site.position.longitude,
            accuracy_meters=site.position.accuracy_meters,
            mocked=site.position.mocked,
        ),
        open=site.is_open,
    )
    message.create_time.CopyFrom(times.timestamp(site.create_time))
    return message


def site_messages(sites: Iterable[Site]) -> list[user_pb2.Site]:
    """Sites as the contract writes them, in the order given."""
    return [site_message(site) for site in sites]


def terminal_message(terminal: Terminal) -> user_pb2.Terminal:
    """A terminal as the contract writes it."""
    message = user_pb2.Terminal(
        name=terminal.name,
        display_name=terminal.display_name,
        site=names.site_name(terminal.vendor_id, terminal.site_id),
        scope=terminal.scope,
        public_key=terminal.public_key,
        state=user_pb2.Terminal.State.Value(f"STATE_{terminal.state.value}"),
        revoke_reason=terminal.revoke_reason,
        version=terminal.version,
    )
    message.create_time.CopyFrom(times.timestamp(terminal.create_time))
    if terminal.revoke_time is not None:
        message.revoke_time.CopyFrom(times.timestamp(terminal.revoke_time))
    return message


def position(message: position_pb2.Position) -> Position:
    """A position from a validated message."""
    return Position(message.latitude, message.longitude, message.accuracy_meters, message.mocked)


def role(value: int) -> Role | None:
    """A role accounts have; None for the others."""
    name = access_pb2.Role.Name(value).removeprefix("ROLE_")  # type: ignore[arg-type]
    return Role(name) if name in Role.__members__ else None


def state(value: int) -> State | None:
    """A state accounts are in; None for unspecified."""
    name = user_pb2.User.State.Name(value).removeprefix("STATE_")  # type: ignore[arg-type]
    return State(name) if name in State.__members__ else None


def tier(value: int) -> Tier | None:
    """A tier accounts have; None for unspecified."""
    name = user_pb2.User.Tier.Name(value).removeprefix("TIER_")  # type: ignore[arg-type]
    return Tier(name) if name in Tier.__members__ else None
