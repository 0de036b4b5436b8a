"""Events on a real stream, as a service's relay would put them there."""

from __future__ import annotations

from datetime import UTC, datetime

from uuid_utils import uuid4

from services import names
from tallystick.event.v1 import event_pb2


def an_event(source, subject, *, at=None, **fact):
    """An event of a service; `fact` is its one fact: `user_changed=…`."""
    event = event_pb2.Event(event_id=str(uuid4()), source=source, subject=subject, **fact)
    event.occur_time.FromDatetime(at or datetime.now(UTC))
    return event


async def publish(redis, *events):
    """Put events on their sources' streams, in order."""
    for event in events:
        fields = {"events": event_pb2.EventBatch(events=[event]).SerializeToString()}
        await redis.xadd(names.stream_name(event.source), fields)
