"""Facts of this service as events, and events of others as news."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from uuid_utils import UUID

from services import names, times
from services.offline import wire
from services.offline.domain.code import Code
from services.offline.domain.item import Entry, Verdict
from services.offline.domain.right import Level, Mark, Right
from services.offline.domain.terminal import Terminal
from services.offline.domain.terms import Terms
from tallystick.event.v1 import event_pb2
from tallystick.offline.v1 import offline_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.user.v1 import user_pb2

SOURCE = "offline"
PLATFORM = "services/offline"
# What the fraud service tells of somebody's offline risk.
_RISK_CHANGED = "offline_risk_changed"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What every event of one change shares.

    Attributes:
        actor: `users/{uuid}`, or `services/{name}`.
        time: When.
        trace_id: The trace it belongs to; empty for none.
    """

    actor: str
    time: datetime
    trace_id: str = ""


def _event(
    event_id: UUID, circumstances: Circumstances, subject: str, audience: UUID
) -> event_pb2.Event:
    return event_pb2.Event(
        event_id=str(event_id),
        source=SOURCE,
        subject=subject,
        actor=circumstances.actor,
        occur_time=times.timestamp(circumstances.time),
        trace_id=circumstances.trace_id,
        audience=[names.user_name(audience)],
    )


def codes_issued(
    event_id: UUID, circumstances: Circumstances, owner_id: UUID, codes: Iterable[Code]
) -> event_pb2.Event:
    """Codes exist from now on."""
    event = _event(event_id, circumstances, names.user_name(owner_id), owner_id)
    event.codes_issued.codes.extend(wire.code_message(code) for code in codes)
    return event


def codes_ended(
    event_id: UUID,
    circumstances: Circumstances,
    owner_id: UUID,
    codes: Iterable[Code],
    reason: str = "",
) -> event_pb2.Event:
    """Codes of one owner cannot be spent any more."""
    event = _event(event_id, circumstances, names.user_name(owner_id), owner_id)
    event.codes_ended.codes.extend(wire.code_message(code) for code in codes)
    event.codes_ended.reason = reason
    return event


def batch_received(
    event_id: UUID, circumstances: Circumstances, vendor_id: UUID, batch: offline_pb2.Batch
) -> event_pb2.Event:
    """A part of a journal is on record."""
    event = _event(event_id, circumstances, batch.name, vendor_id)
    event.batch_received.batch.CopyFrom(batch)
    return event


def item_decided(
    event_id: UUID, circumstances: Circumstances, entry: Entry, verdict: Verdict
) -> event_pb2.Event:
    """An item has its result, from now on."""
    item = wire.decided_item(entry, verdict, circumstances.time)
    event = _event(event_id, circumstances, item.name, entry.vendor_id)
    event.item_decided.item.CopyFrom(item)
    return event


def double_spend_found(
    event_id: UUID, circumstances: Circumstances, found: offline_pb2.DoubleSpend
) -> event_pb2.Event:
    """One code, two sales. The signed entries hold symbols, and are not in the event."""
    event = _event(event_id, circumstances, found.code, names.last_id(found.owner))
    event.double_spend_found.double_spend.CopyFrom(found)
    return event


def wrong_codes_entered(
    event_id: UUID,
    circumstances: Circumstances,
    terminal: Terminal,
    entered: Iterable[tuple[int, datetime]],
) -> event_pb2.Event:
    """Codes were guessed at a terminal: how many, and when."""
    event = _event(event_id, circumstances, terminal.name, terminal.vendor_id)
    event.wrong_codes_entered.terminal = terminal.name
    for count, time in entered:
        event.wrong_codes_entered.entered.add(count=count, time=times.timestamp(time))
    return event


def right_changed(
    event_id: UUID, circumstances: Circumstances, right: Right, terms: Terms
) -> event_pb2.Event:
    """Somebody's right changed."""
    event = _event(event_id, circumstances, names.user_name(right.owner_id), right.owner_id)
    event.offline_right_changed.right.CopyFrom(wire.right_message(right, terms))
    return event


def terminal(message: user_pb2.Terminal) -> Terminal:
    """What the user service says of a terminal."""
    revoked = message.state == user_pb2.Terminal.STATE_REVOKED
    return Terminal(
        terminal_id=names.last_id(message.name),
        vendor_id=names.owner_id(message.name),
        site_id=names.last_id(message.site),
        scope=message.scope or "main",
        public_key=message.public_key,
        revoke_time=times.instant(message.revoke_time) if revoked else None,
        version=message.version,
    )


def review(event: event_pb2.Event) -> bool | None:
    """What a reviewer decided of a held payment: True for the vendor; None when the event is of something else."""
    fact = event.WhichOneof("fact")
    if fact == "payment_succeeded" and _was_held(
        event.payment_succeeded.risk, event.payment_succeeded.review_reason
    ):
        return True
    if fact == "payment_failed" and _was_held(
        event.payment_failed.risk, event.payment_failed.review_reason
    ):
        return False
    return None


def _was_held(risk: payment_pb2.Risk, review_reason: str) -> bool:
    # A thousand payments end a second, and only one that was held ends with a reviewer's words.
    held = {payment_pb2.Risk.DECISION_REVIEW, payment_pb2.Risk.DECISION_DECLINE}
    return bool(review_reason) or risk.decision in held


def fraud_mark(event: event_pb2.Event) -> tuple[UUID, Mark] | None:
    """Whose right the fraud service sets how far, and why; None when the event is of something else.

    The one place that knows the fact. A deployment whose fraud service does not tell it yet never sees it.
    """
    if event.WhichOneof("fact") != _RISK_CHANGED:
        return None
    fact = getattr(event, _RISK_CHANGED)
    return names.last_id(fact.user), Mark(Level(fact.level), fact.reason)
