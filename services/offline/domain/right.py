"""The right to spend offline: how far it goes, and who has set it lower."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime

from uuid_utils import UUID

# A REDUCED right, as a share of the whole cap.
_REDUCED_DIVISOR = 4


class Level(enum.IntEnum):
    """How far a right goes, numbered as in `offline.v1.OfflineRight.Level`: a greater number is less of a right."""

    NORMAL = 1
    REDUCED = 2
    SUSPENDED = 3


class Source(enum.Enum):
    """Who sets a level here, beside the fraud service."""

    DOUBLE_SPEND = "double_spend"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Mark:
    """A level somebody has set, and why."""

    level: Level = Level.NORMAL
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Right:
    """Somebody's right. Who has none on record has a NORMAL one.

    Attributes:
        owner_id: Whose.
        double_spend: What a code in two shops has set.
        fraud: What the fraud service has set.
        admin: What an operator has set.
        fraud_time: Of the newest word of the fraud service; None when it never said any.
        update_time: When one of them last changed; None when none ever has.
    """

    owner_id: UUID
    double_spend: Mark = Mark()
    fraud: Mark = Mark()
    admin: Mark = Mark()
    fraud_time: datetime | None = None
    update_time: datetime | None = None

    @property
    def _lowest(self) -> Mark:
        return max(self.double_spend, self.fraud, self.admin, key=lambda mark: mark.level)

    @property
    def level(self) -> Level:
        """The lowest that anybody has set."""
        return self._lowest.level

    @property
    def reason(self) -> str:
        """Why it is not higher; where it is NORMAL, what an operator wrote."""
        return self._lowest.reason or self.admin.reason

    def cap(self, whole: int) -> int:
        """What live codes may be worth together, of the deployment's whole cap, in minor units."""
        if self.level is Level.SUSPENDED:
            return 0
        return whole // _REDUCED_DIVISOR if self.level is Level.REDUCED else whole


def put(right: Right, source: Source, mark: Mark, *, now: datetime) -> Right:
    """Set what an operator or a double spend says. What is set already stays as it is, with its time.

    NORMAL from an operator also forgives double spends.
    """
    if source is Source.DOUBLE_SPEND:
        after = replace(right, double_spend=mark)
    elif mark.level is Level.NORMAL:
        after = replace(right, admin=mark, double_spend=Mark())
    else:
        after = replace(right, admin=mark)
    return right if after == right else replace(after, update_time=now)


def hear(right: Right, mark: Mark, *, say_time: datetime, now: datetime) -> Right:
    """Take over what the fraud service said at an instant. What it said before something newer changes nothing."""
    if right.fraud_time is not None and say_time <= right.fraud_time:
        return right
    heard = replace(right, fraud=mark, fraud_time=say_time)
    return heard if mark == right.fraud else replace(heard, update_time=now)
