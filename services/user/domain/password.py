"""Which passwords are refused: those an attacker tries first (NIST SP 800-63B, 5.1.1.2)."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Set as AbstractSet

from services.user.domain import refusals

# Neighbours in these rows make runs such as `qwertyuiop12`, forwards and backwards.
_ROWS = ("1234567890", "abcdefghijklmnopqrstuvwxyz", "qwertyuiop", "asdfghjkl", "zxcvbnm")
_STEPS = frozenset(
    pair
    for row in _ROWS
    for left, right in itertools.pairwise(row)
    for pair in (left + right, right + left)
) | {"01", "10"}
# What is written for a letter to satisfy older rules.
_LOOKALIKES = str.maketrans("@4301$57", "aaeoisst")
_EDGES = re.compile(r"^[\W\d_]+|[\W\d_]+$")
# A repeated unit shorter than this is a pattern whatever it is made of.
_UNIT_CHARACTERS_MIN = 6
# A run must average this many characters to count against a password: phrases hold short ones by accident.
_RUN_CHARACTERS = 4
# What must be left of a password when the username is taken out of it.
_BESIDE_USERNAME_CHARACTERS_MIN = 8


def canonical(password: str) -> str:
    """The password as it is hashed: the same however a keyboard composes its accents."""
    return unicodedata.normalize("NFKC", password)


def check(password: str, username: str, common: AbstractSet[str]) -> None:
    """Let a new password pass.

    Args:
        password: As typed.
        username: The account's.
        common: The commonest passwords, in lower case, of any length.

    Raises:
        Refusal: password_too_common, when it is in the list or is a listed word with digits or signs
            around it, repeats a short unit, consists of runs of neighbouring keys or letters, or is the
            username with nothing better beside it.
    """
    folded = canonical(password).casefold()
    rest = folded.replace(username, "")
    if _is_tried_first(folded, common) or (
        rest != folded
        and (len(rest) < _BESIDE_USERNAME_CHARACTERS_MIN or _is_tried_first(rest, common))
    ):
        raise refusals.password_too_common()


def _is_tried_first(folded: str, common: AbstractSet[str]) -> bool:
    return (
        _is_listed(folded, common)
        or _repeats(folded, common)
        or _runs(folded) * _RUN_CHARACTERS <= len(folded)
    )


def _is_listed(folded: str, common: AbstractSet[str]) -> bool:
    core = _EDGES.sub("", folded)
    return folded in common or core in common or core.translate(_LOOKALIKES) in common


def _repeats(folded: str, common: AbstractSet[str]) -> bool:
    for length in range(1, len(folded) // 2 + 1):
        if folded == (folded[:length] * len(folded))[: len(folded)]:
            return length < _UNIT_CHARACTERS_MIN or _is_listed(folded[:length], common)
    return False


def _runs(folded: str) -> int:
    breaks = (
        left != right and left + right not in _STEPS for left, right in itertools.pairwise(folded)
    )
    return 1 + sum(breaks)
