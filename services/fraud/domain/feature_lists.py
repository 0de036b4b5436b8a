"""Lists of features that differ from today's: what was kept on one, read on another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import nan

from services.fraud.features.spec import FEATURES, Feature


class Arrangement:
    """Reads what was kept on one list of features as if it had been kept on today's.

    A feature is the same on both when name, unit and meaning are: under an old name with a new meaning,
    a figure would say what it never said.

    Args:
        kept: The list it was kept on.

    Attributes:
        unknown: Names of today's features that were not kept.
    """

    def __init__(self, kept: Sequence[Feature]) -> None:
        places = {feature: at for at, feature in enumerate(kept)}
        self.unknown = frozenset(each.name for each in FEATURES if each not in places)
        self._kept = len(kept)
        self._places = (
            None if tuple(kept) == FEATURES else [places.get(feature) for feature in FEATURES]
        )

    def arrange(self, values: Sequence[float]) -> Sequence[float] | None:
        """The values in today's order, NaN for those of `unknown`; None when they are not of that list."""
        if len(values) != self._kept:
            return None
        if self._places is None:
            return values
        return [nan if at is None else values[at] for at in self._places]


def to_text(features: Sequence[Feature]) -> str:
    """A list as it is put on record."""
    return json.dumps([[each.name, each.unit, each.meaning] for each in features])


def from_text(text: str) -> tuple[Feature, ...]:
    """The list that `to_text` wrote."""
    return tuple(Feature(*each) for each in json.loads(text))
