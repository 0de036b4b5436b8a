"""What stands in the code field while it is typed: every symbol is looked at as it comes."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from protocol import code as codes
from protocol.code import CodeInvalid, Flaw


class Look(enum.Enum):
    """How a code looks so far."""

    EMPTY = "empty"
    TYPING = "typing"
    WRONG = "wrong"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Entry:
    """A code, or the beginning of one.

    Attributes:
        look: How it looks.
        pretty: In groups of four, as far as it goes.
        hint: What to tell who types.
    """

    look: Look
    pretty: str
    hint: str


def look_at(text: str) -> Entry:
    """Judge what was typed so far. Dashes, blanks, case, O for 0, I and L for 1 do not matter."""
    bare = text.upper().replace("-", "").replace(" ", "")
    if not bare:
        return Entry(Look.EMPTY, "", f"{codes.SYMBOLS} symbols, grouped or not")
    try:
        codes.parse(text)
    except CodeInvalid as invalid:
        if invalid.flaw is not Flaw.LENGTH:
            return Entry(Look.WRONG, _grouped(bare), str(invalid))
        if len(bare) > codes.SYMBOLS:
            return Entry(Look.WRONG, _grouped(bare), str(invalid))
        left = codes.SYMBOLS - len(bare)
        return Entry(Look.TYPING, _grouped(bare), f"{left} more")
    return Entry(Look.WHOLE, _grouped(codes.normalize(text)), "The symbols belong together.")


def _grouped(bare: str) -> str:
    return "-".join(bare[start : start + 4] for start in range(0, len(bare), 4))
