"""One code in two sales."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from uuid_utils import UUID

from services.offline.domain.code import Code
from services.offline.domain.item import Entry


@dataclass(frozen=True, slots=True)
class DoubleSpend:
    """One code in two sales.

    Attributes:
        double_spend_id: UUIDv7.
        code_id: The code.
        owner_id: The payer.
        first_entry: The item that was paid.
        second_entry: The one that was not.
        proven: Both carry the payer's own signature, under two different sales.
        find_time: When it was found.
    """

    double_spend_id: UUID
    code_id: UUID
    owner_id: UUID
    first_entry: UUID
    second_entry: UUID
    proven: bool
    find_time: datetime


def found(
    code: Code, first: Entry, second: Entry, *, double_spend_id: UUID, now: datetime
) -> DoubleSpend:
    """What two sales of one code are.

    They prove it against the payer when the payer's device has signed two different sales: one signature that a vendor
    uploads twice proves nothing.
    """
    proven = bool(first.spend_hash) and bool(second.spend_hash)
    return DoubleSpend(
        double_spend_id=double_spend_id,
        code_id=code.code_id,
        owner_id=code.owner_id,
        first_entry=first.entry_id,
        second_entry=second.entry_id,
        proven=proven and first.spend_hash != second.spend_hash,
        find_time=now,
    )
