"""What covers the counter for a moment: a receipt, and the request a payer's device signs."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

import segno
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Static
from uuid_utils import UUID

from pos.shell import amount_text
from protocol import voucher


def qr_text(content: str) -> str:
    """A QR code in half blocks, two rows of modules to a line of text, with its quiet zone."""
    rows = [list(row) for row in segno.make(content, error="l").matrix_iter(scale=1, border=4)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    # Dark modules are drawn as blanks on a light ground: terminals are dark, and scanners want dark on light.
    blocks = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}
    lines = zip(rows[::2], rows[1::2], strict=True)
    return "\n".join(
        "".join(blocks[bool(upper), bool(lower)] for upper, lower in zip(*pair, strict=True))
        for pair in lines
    )


def pay_request(
    vendor_id: UUID, terminal_id: UUID, minor_units: int, currency: str, now: datetime
) -> str:
    """What a payer's device reads: vendor 16 bytes, terminal 16, minor units 8, currency 3, Unix seconds 8."""
    data = b"".join(
        (
            vendor_id.bytes,
            terminal_id.bytes,
            minor_units.to_bytes(8, "big"),
            currency.encode(),
            int(now.timestamp()).to_bytes(8, "big"),
        )
    )
    return voucher.to_text("TSR1", data)


class Receipt(ModalScreen[None]):
    """A sale that was approved, for the payer to photograph."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,enter,space", "dismiss", "Done")]

    def __init__(self, item: str, minor_units: int, currency: str, when: datetime) -> None:
        super().__init__()
        self._amount = f"{amount_text(minor_units, currency)} {currency}"
        self._lines = f"APPROVED OFFLINE (provisional)\n{when:%Y-%m-%d %H:%M} UTC\n\n{item}"
        self._content = f"{item} {minor_units} {currency} {int(when.timestamp())}"

    def compose(self) -> ComposeResult:
        """Words, and the same as a QR code."""
        with Vertical(classes="paper"), Horizontal():
            yield Static(qr_text(self._content), id="receipt-qr", classes="qr")
            with Vertical(classes="words"):
                yield Static(self._amount, id="receipt-amount", classes="amount")
                yield Static(self._lines, id="receipt-text")
                yield Static("Enter: next sale", classes="label")


class PayRequest(ModalScreen[None]):
    """What the payer's device shall sign."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,enter,space", "dismiss", "Done")]

    def __init__(self, content: str, minor_units: int, currency: str) -> None:
        super().__init__()
        self._content = content
        self._amount = f"{amount_text(minor_units, currency)} {currency}"

    def compose(self) -> ComposeResult:
        """The QR code, and how to go on."""
        with Vertical(classes="paper"), Horizontal():
            yield Static(qr_text(self._content), id="request-qr", classes="qr")
            with Vertical(classes="words"):
                yield Static(self._amount, classes="amount")
                yield Static("The payer's device scans this and signs.")
                yield Static(
                    "Then Enter, and scan what it shows into the code field.", classes="label"
                )
