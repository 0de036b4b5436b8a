"""A code as its issuer keeps it, and what may become of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID


class State(enum.IntEnum):
    """The numbers of `offline.v1.Code.State`; stored; never renumbered."""

    RESERVING = 1
    ISSUED = 2
    SPENT = 3
    EXPIRED = 4
    REVOKED = 5


# One way: what ended does not come back.
MOVES: frozenset[tuple[State, State]] = frozenset(
    {
        (State.RESERVING, State.ISSUED),
        (State.ISSUED, State.SPENT),
        (State.ISSUED, State.EXPIRED),
        (State.ISSUED, State.REVOKED),
        # A sale before the revocation, uploaded after it.
        (State.REVOKED, State.SPENT),
    }
)


class Money(enum.IntEnum):
    """Where the money behind a code is. Stored; never renumbered."""

    RESERVED = 1
    # The ledger is being told to give it back.
    RELEASING = 2
    RELEASED = 3
    SPENT = 4


@dataclass(frozen=True, slots=True)
class Code:
    """A code, without its symbols.

    Attributes:
        code_id: UUIDv7; also the ledger's reservation.
        owner_id: The payer.
        currency: ISO 4217.
        minor_units: What it is worth.
        scope: The area whose terminals take it.
        hint: Its first four symbols.
        state: Where it stands.
        money: Where the money behind it is.
        issue_time: UTC, as all times.
        expire_time: From here on no terminal takes it.
        release_time: From here on no upload spends it.
        revoke_time: When it was stopped; None when it was not.
        item_id: The item that spent it; None while none has.
        vendor_id: Whose item that is.
        payment_id: The payment of that item.
        spent: Minor units of it that were spent.
    """

    code_id: UUID
    owner_id: UUID
    currency: str
    minor_units: int
    scope: str
    hint: str
    state: State
    money: Money
    issue_time: datetime
    expire_time: datetime
    release_time: datetime
    revoke_time: datetime | None = None
    item_id: UUID | None = None
    vendor_id: UUID | None = None
    payment_id: UUID | None = None
    spent: int = 0

    @property
    def is_live(self) -> bool:
        """It may still cost money."""
        return self.money in {Money.RESERVED, Money.RELEASING}

    def move(self, state: State) -> Code:
        """The code in another state."""
        assert (self.state, state) in MOVES
        return replace(self, state=state)


def revoke(code: Code, *, now: datetime) -> Code:
    """Stop a code. Its money stays reserved until its release time: a sale before now still counts."""
    return replace(code.move(State.REVOKED), revoke_time=now)


def spend(code: Code, item_id: UUID, vendor_id: UUID, payment_id: UUID, amount: int) -> Code:
    """The code's one item."""
    return replace(
        code.move(State.SPENT),
        money=Money.SPENT,
        item_id=item_id,
        vendor_id=vendor_id,
        payment_id=payment_id,
        spent=amount,
    )


def expire(code: Code) -> Code:
    """Nobody uploaded a sale in time: the money goes back. A revoked code stays REVOKED."""
    ended = code if code.state is State.REVOKED else code.move(State.EXPIRED)
    return replace(ended, money=Money.RELEASING)
