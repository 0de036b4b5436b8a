"""The facts this service records, and what it reads out of those of others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from uuid_utils import UUID

from services import names, times
from services.fraud.domain.offline_risk import Level
from services.fraud.features.incidents import Incident, Kind
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.payment.v1 import payment_pb2

SOURCE = "fraud"
# The actor of what the service does by itself.
PLATFORM = "services/fraud"

_REJECTED = payment_pb2.Payment.FAILURE_REASON_REVIEW_REJECTED


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reviewer decided about a payment."""

    payment: str
    fraud: bool
    reason: str
    actor: str


def verdict(event: event_pb2.Event) -> Verdict | None:
    """The reviewer's decision in an event of the payment service; None for most."""
    fact = event.WhichOneof("fact")
    if fact == "payment_succeeded":
        reason, fraud = event.payment_succeeded.review_reason, False
    elif fact == "payment_failed":
        failed = event.payment_failed
        # A reviewer may have let it pass, and the vendor been suspended meanwhile.
        fraud = failed.reason == _REJECTED
        reason = failed.review_reason if fraud else ""
    else:
        return None
    return Verdict(event.subject, fraud, reason, event.actor) if reason else None


def is_incident(event: event_pb2.Event) -> bool:
    """Whether an event of the offline service tells of guessed codes or of one spent twice."""
    return event.WhichOneof("fact") in {"wrong_codes_entered", "double_spend_found"}


def incidents(event: event_pb2.Event) -> list[Incident]:
    """What went wrong, out of an event of the offline service."""
    if event.WhichOneof("fact") == "wrong_codes_entered":
        entered = event.wrong_codes_entered
        vendor = names.user_name(names.owner_id(entered.terminal))
        return [
            Incident(
                f"{event.event_id}/{place}",
                Kind.WRONG_CODES,
                vendor,
                each.count,
                _seconds(each.time),
            )
            for place, each in enumerate(entered.entered)
        ]
    found = event.double_spend_found.double_spend
    first, second = (names.owner_id(item.terminal) for item in (found.first, found.second))
    # By the server's clock: a terminal that brings a code twice may date it as it likes.
    at = _seconds(found.find_time)
    if first == second:
        return [Incident(event.event_id, Kind.OWN_DUPLICATE, names.user_name(second), 1, at)]
    return [Incident(event.event_id, Kind.DOUBLE_SPEND, found.owner, 1, at)]


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9


def alert_raised(event_id: UUID, alert: pb.Alert) -> event_pb2.Event:
    """Something a person should see."""
    event = event_pb2.Event(
        event_id=str(event_id),
        source=SOURCE,
        subject=alert.payment or alert.name,
        actor=PLATFORM,
        occur_time=alert.create_time,
    )
    event.alert_raised.alert.CopyFrom(alert)
    return event


def rules_changed(
    event_id: UUID, revision: int, change: str, *, actor: str, now: datetime
) -> event_pb2.Event:
    """An analyst changed rules, lists or suppressions."""
    event = event_pb2.Event(
        event_id=str(event_id), source=SOURCE, subject=f"rules/{revision}", actor=actor
    )
    event.occur_time.CopyFrom(times.timestamp(now))
    event.rules_changed.revision = revision
    event.rules_changed.change = change
    return event


def offline_risk_changed(
    event_id: UUID, payer_id: UUID, level: Level, reason: str, *, now: datetime
) -> event_pb2.Event:
    """A payer may be trusted offline more, less, or not at all from now on."""
    user = names.user_name(payer_id)
    event = event_pb2.Event(
        event_id=str(event_id), source=SOURCE, subject=user, actor=PLATFORM, audience=[user]
    )
    event.occur_time.CopyFrom(times.timestamp(now))
    event.offline_risk_changed.user = user
    event.offline_risk_changed.level = int(level)  # type: ignore[assignment]
    event.offline_risk_changed.reason = reason
    return event
