"""Money set aside behind an offline code. The ledger knows nothing else of a code."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import NamedTuple

from uuid_utils import UUID

from services.payment.domain.ledger import WalletKey


class ReservationState(enum.IntEnum):
    """Stored; never renumbered. LIVE becomes one of the others, once."""

    LIVE = 1
    SETTLED = 2
    RELEASED = 3


class Reservation(NamedTuple):
    """Minor units of a wallet's reserved balance.

    Attributes:
        reservation_id: Made by who reserved it.
        wallet: Whose money; guards the reservation.
        amount: Minor units.
        state: Where the money is: reserved, with a payment, or back.
        payment_id: What settled it.
        create_time: When the money was set aside.
        update_time: When it got its state.
    """

    reservation_id: UUID
    wallet: WalletKey
    amount: int
    state: ReservationState
    payment_id: UUID | None
    create_time: datetime
    update_time: datetime
