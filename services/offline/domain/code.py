"""A code as the issuer keeps it, and the ways it moves."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from uuid_utils import UUID

from services.money import Money
from services.names import code_name
from services.offline.domain import refusals
from services.offline.domain.right import Level, Right
from services.offline.domain.terms import LIVE_CODES_MAX, Terms


class State(enum.IntEnum):
    """Where a code stands, numbered as in `offline.v1.Code.State`."""

    # Payment refused to set its money aside; shown to nobody.
    ABANDONED = 0
    RESERVING = 1
    ISSUED = 2
    SPENT = 3
    EXPIRED = 4
    REVOKED = 5


class Release(enum.IntEnum):
    """What becomes of the money behind a code that is not spent."""

    # It stays reserved.
    NONE = 0
    # Nothing can spend it any more; payment has yet to give it back.
    DUE = 1
    # It went back.
    DONE = 2


@dataclass(frozen=True, slots=True)
class Code:
    """A code without its symbols.

    Attributes:
        code_id: UUIDv7; also the id of the reservation behind it.
        issue_id: The request that made it.
        owner_id: The payer.
        value: What may be spent with it, once.
        hint: The first four symbols.
        scope: The area whose terminals take it.
        state: Where it stands.
        release: What becomes of its money.
        issue_time: When it was made.
        expire_time: From here on no terminal takes it.
        release_time: From here on no upload spends it.
        revoke_time: When it was stopped.
    """

    code_id: UUID
    issue_id: UUID
    owner_id: UUID
    value: Money
    hint: str
    scope: str
    state: State
    release: Release
    issue_time: datetime
    expire_time: datetime
    release_time: datetime
    revoke_time: datetime | None = None

    @property
    def is_live(self) -> bool:
        """It may still cost money."""
        return self.state in {State.RESERVING, State.ISSUED} or self.is_stopped

    @property
    def is_stopped(self) -> bool:
        """It was revoked, and a sale from before that may still arrive."""
        return self.state is State.REVOKED and self.release is Release.NONE

    @property
    def can_be_spent(self) -> bool:
        """An item may spend it: a revoked one for a sale before it was revoked."""
        return self.state is State.ISSUED or self.is_stopped


def check_room(live: Sequence[Code], values: Sequence[Money], right: Right, terms: Terms) -> None:
    """See that somebody may have these codes beside their live ones.

    Args:
        live: Every live code of the owner, in any currency.
        values: What is asked for; all of one currency.
        right: The owner's.
        terms: The deployment's.

    Raises:
        Refusal: offline_suspended, too_many_codes, offline_cap_exceeded, in this order.
    """
    if right.level is Level.SUSPENDED:
        raise refusals.offline_suspended(right.reason)
    if len(live) + len(values) > LIVE_CODES_MAX:
        raise refusals.too_many_codes(LIVE_CODES_MAX, len(live))
    currency_code = values[0].currency_code
    worth = sum(
        code.value.minor_units for code in live if code.value.currency_code == currency_code
    )
    cap = right.cap(terms.cap)
    if worth + sum(value.minor_units for value in values) > cap:
        raise refusals.offline_cap_exceeded(cap, worth, currency_code)


def revoke(code: Code, *, now: datetime) -> Code:
    """Stop a code. One that is stopped stays as it is.

    Raises:
        Refusal: code_ended.
    """
    if code.is_stopped:
        return code
    if not code.is_live or now >= code.release_time:
        raise refusals.code_ended(code_name(code.code_id), code.state.name)
    return replace(code, state=State.REVOKED, revoke_time=now)
