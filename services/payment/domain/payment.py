"""A payment and its states."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from uuid_utils import UUID

from services.payment.domain.ledger import WalletKey


class State(enum.IntEnum):
    """The numbers of `payment.v1.Payment.State`; stored; never renumbered."""

    PENDING = 1
    PROCESSING = 2
    SUCCESS = 3
    FAILED = 4
    FLAGGED = 5


# Every move a payment may make. A refund does not change the state.
MOVES: frozenset[tuple[State | None, State]] = frozenset(
    {
        (None, State.PENDING),
        (State.PENDING, State.PROCESSING),
        (State.PROCESSING, State.SUCCESS),
        (State.PROCESSING, State.FAILED),
        (State.PROCESSING, State.FLAGGED),
        (State.FLAGGED, State.SUCCESS),
        (State.FLAGGED, State.FAILED),
    }
)


class Channel(enum.IntEnum):
    """The numbers of `payment.v1.Payment.Channel`; stored; never renumbered."""

    ONLINE = 1
    OFFLINE = 2


class FailureReason(enum.IntEnum):
    """The numbers of `payment.v1.Payment.FailureReason`; stored; never renumbered."""

    NONE = 0
    INSUFFICIENT_FUNDS = 1
    RISK_DECLINED = 2
    REVIEW_REJECTED = 3
    PAYER_NOT_ACTIVE = 4
    VENDOR_NOT_ACTIVE = 5


class Decision(enum.IntEnum):
    """The numbers of `payment.v1.Risk.Decision`; stored; never renumbered."""

    NONE = 0
    ALLOW = 1
    REVIEW = 2
    DECLINE = 3
    DEGRADED = 4


@dataclass(frozen=True, slots=True)
class Risk:
    """What the fraud check said, or that it did not (DEGRADED)."""

    decision: Decision
    score: int = 0
    reasons: tuple[str, ...] = ()


UNASSESSED = Risk(Decision.NONE)


@dataclass(frozen=True, slots=True)
class Position:
    """Where the payer's device says it is: degrees WGS 84, metres."""

    latitude: float
    longitude: float
    accuracy_meters: float
    mocked: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """What is known of the code an offline payment was paid with: told the fraud check, and not kept with the payment.

    Attributes:
        code_age: From the code's issue to the payment; None where it is not known.
        device: The payer's device that signed a voucher, an opaque id; empty for a typed code.
    """

    code_age: timedelta | None = None
    device: str = ""


NOTHING_SHOWN = Shown()


class Payment(NamedTuple):
    """Money from a payer to a vendor. Amounts in minor units of the payer wallet's currency.

    A named tuple, as what else every payment makes several of: a frozen dataclass of eighteen fields takes three times
    as long to make, and five times to copy with a change.

    Attributes of offline payments alone: the vendor's terminal that took it, the reservation it was paid from, and when
    the payer paid by the terminal's trusted time; an online payment occurs when it is created.
    """

    payment_id: UUID
    payer: WalletKey
    vendor_id: UUID
    site_id: UUID | None
    amount: int
    refunded: int
    state: State
    failure_reason: FailureReason
    risk: Risk
    position: Position | None
    reference: str
    request_id: UUID
    create_time: datetime
    update_time: datetime
    channel: Channel = Channel.ONLINE
    terminal_id: UUID | None = None
    reservation_id: UUID | None = None
    spend_time: datetime | None = None

    @property
    def occur_time(self) -> datetime:
        """When the payer paid."""
        return self.create_time if self.spend_time is None else self.spend_time

    @property
    def vendor(self) -> WalletKey:
        """The wallet that is paid."""
        return WalletKey(self.vendor_id, self.payer.currency_code)
