"""Keysets: eight numbers for the keys that codes are signed with, used in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from protocol.code import KEYSETS
from services.offline.domain import refusals
from services.offline.domain.terms import Terms

# Replicas learn of a new keyset within seconds; a code they still issue under the one before lives no longer than this
# beyond what the figures say.
_SLACK = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Keyset:
    """A key that codes are signed with.

    Attributes:
        generation: 0 for the first, then always one more.
        epoch_time: The midnight UTC that expiry days count from.
        sealed_key: The master key of 32 bytes, sealed.
        create_time: When it took over from the one before.
    """

    generation: int
    epoch_time: datetime
    sealed_key: bytes
    create_time: datetime

    @property
    def number(self) -> int:
        """0 to 7, as in the code."""
        return self.generation % KEYSETS


def next_generation(keysets: Sequence[Keyset], terms: Terms, *, now: datetime) -> int:
    """The generation to start now.

    Args:
        keysets: All there are, oldest first.
        terms: How long codes live.
        now: UTC.

    Raises:
        Refusal: keysets_in_use, while codes of the last keyset with the same number may cost money.
    """
    if not keysets:
        return 0
    generation = keysets[-1].generation + 1
    for keyset, successor in pairwise(keysets):
        if keyset.generation == generation - KEYSETS:
            free_time = successor.create_time + terms.code_life + terms.upload + _SLACK
            if now < free_time:
                raise refusals.keysets_in_use(free_time)
    return generation


def is_old(keyset: Keyset, terms: Terms, *, now: datetime) -> bool:
    """Whether it is time for the next one."""
    return now >= keyset.create_time + terms.keyset_age


def spendable(keysets: Sequence[Keyset], terms: Terms, *, now: datetime) -> list[Keyset]:
    """Those whose codes a terminal may take: the newest, and those replaced within the life of a code.

    Args:
        keysets: All there are, oldest first.
        terms: How long codes live.
        now: UTC.
    """
    kept = [
        keyset
        for keyset, successor in pairwise(keysets)
        if now < successor.create_time + terms.code_life + _SLACK
    ]
    return [*kept, *keysets[-1:]]
