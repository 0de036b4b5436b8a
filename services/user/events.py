"""The facts this service records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from uuid_utils import UUID

from services import names, telemetry, times
from services.user.domain.signing_key import SigningKey
from services.user.domain.site import Site
from services.user.domain.terminal import Terminal
from services.user.domain.user import User
from services.user.messages import site_messages, terminal_message, user_message
from tallystick.event.v1 import event_pb2

SOURCE = "user"
# The actor of what the service does by itself.
ITSELF = "services/user"

Change = event_pb2.UserChanged.Change


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What every fact of one transaction shares.

    Attributes:
        actor: `users/{uuid}` or `services/{name}`.
        now: When, UTC.
    """

    actor: str
    now: datetime


def user_changed(
    event_id: UUID,
    circumstances: Circumstances,
    change: Change.ValueType,
    user: User,
    sites: Iterable[Site],
) -> event_pb2.Event:
    """An account, and all its sites, as a change left them."""
    event = _event(event_id, circumstances, names.user_name(user.user_id))
    event.user_changed.change = change
    event.user_changed.user.CopyFrom(user_message(user))
    event.user_changed.sites.extend(site_messages(sites))
    return event


def terminal_changed(
    event_id: UUID,
    circumstances: Circumstances,
    change: event_pb2.TerminalChanged.Change.ValueType,
    terminal: Terminal,
) -> event_pb2.Event:
    """A terminal, as a change left it."""
    event = _event(event_id, circumstances, terminal.name)
    event.terminal_changed.change = change
    event.terminal_changed.terminal.CopyFrom(terminal_message(terminal))
    return event


def tokens_revoked(
    event_id: UUID, circumstances: Circumstances, subject: str, *, issued_before: datetime
) -> event_pb2.Event:
    """Tokens of a person or a terminal issued before an instant are refused from now on."""
    event = _event(event_id, circumstances, subject)
    event.tokens_revoked.token_subject = subject
    event.tokens_revoked.revoke_time.CopyFrom(times.timestamp(issued_before))
    return event


def signing_key_rotated(
    event_id: UUID, circumstances: Circumstances, key: SigningKey
) -> event_pb2.Event:
    """A key was added to the set."""
    event = _event(event_id, circumstances, f"signingKeys/{key.key_id}")
    event.signing_key_rotated.key_id = key.key_id
    event.signing_key_rotated.sign_time.CopyFrom(times.timestamp(key.sign_time))
    return event


def _event(event_id: UUID, circumstances: Circumstances, subject: str) -> event_pb2.Event:
    event = event_pb2.Event(
        event_id=str(event_id),
        source=SOURCE,
        subject=subject,
        actor=circumstances.actor,
        trace_id=telemetry.trace_id(),
    )
    event.occur_time.CopyFrom(times.timestamp(circumstances.now))
    return event
