"""The counter: amount, code, answer; what is stored, and whether there is network."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Grid, Horizontal, Vertical
from textual.widgets import Button, Footer, Input, Label, ProgressBar, RichLog, Static

from pos.app.entry import Look, look_at
from pos.app.screens import PayRequest, Receipt, pay_request
from pos.decision import Decision, Typed, VoucherShown
from pos.errors import PosError
from pos.journal import Sale
from pos.shell import amount_text, parse_amount, parse_spend, state_text
from pos.status import Network
from pos.terminal import Terminal

_PAD = ("7", "8", "9", "4", "5", "6", "1", "2", "3", "C", "0", ".")
_REFRESH_SECONDS = 1.0
_CLASSES = {
    Network.ONLINE: "online",
    Network.OFFLINE: "offline",
    Network.MUST_SYNC: "must-sync",
}


class Till(App[None]):
    """A terminal at a counter.

    Args:
        terminal: Open for as long as the app runs.
        currency: Of every sale.
        automatic: Sync by itself when there is network.
        now: UTC, for what is printed.
    """

    TITLE = "Tallystick till"
    CSS_PATH = "till.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        ("f2", "request", "Voucher request"),
        ("f5", "sync", "Sync now"),
        ("escape", "clear", "Clear"),
        ("ctrl+q", "quit", "Quit"),
    ]

    def __init__(
        self,
        terminal: Terminal,
        currency: str,
        *,
        automatic: bool = True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__()
        # The usual 80 by 24 has room for everything, drawn closer.
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]
        self._till = terminal
        self._currency = currency
        self._automatic = automatic
        self._clock = now

    def compose(self) -> ComposeResult:
        """State above; the sale at the left, what is stored at the right."""
        yield Static(id="state")
        with Horizontal(id="work"):
            with Vertical(id="sale"):
                yield Label(f"Amount, {self._currency}", classes="label")
                yield Input(id="amount", placeholder="0.00", restrict=r"[0-9.,]*")
                with Grid(id="pad"):
                    for key in _PAD:
                        yield Button(key, id=f"pad-{'dot' if key == '.' else key}")
                yield Label("Code, or what the payer's device shows", classes="label")
                yield Input(id="code", placeholder="XXXX-XXXX-XXXX-XXXX")
                yield Static(id="look", markup=False)
                yield Static(id="answer", markup=False)
            with Vertical(id="side"):
                yield Static(id="stored")
                with Vertical(id="limits"):
                    yield Label("of the most that may be stored", classes="label")
                    yield ProgressBar(id="total-bar", total=1, show_eta=False)
                    yield Label("of the most sales", classes="label")
                    yield ProgressBar(id="count-bar", total=1, show_eta=False)
                yield RichLog(id="news", wrap=True)
        yield Footer()

    def on_mount(self) -> None:
        """Show how things stand, and go on doing so."""
        self.query_one("#news", RichLog).border_title = self._till.identity.display_name
        self.show_state()
        self.set_interval(_REFRESH_SECONDS, self.show_state)
        self.query_one("#amount", Input).focus()
        for flaw in self._till.status().flaws:
            self._tell(f"Journal: entry {flaw.sequence} {flaw.what}.")
        if self._automatic:
            self._keep_synced()

    def show_state(self) -> None:
        """ONLINE, OFFLINE for so long, or MUST SYNC; what is stored, and how near the limits that is."""
        if not self.query("#state"):
            return  # the program is closing
        status = self._till.status()
        state = self.query_one("#state", Static)
        text = state_text(status)
        if status.locked_for is not None:
            text += (
                f"   LOCKED for {round(status.locked_for.total_seconds())} s: too many wrong codes"
            )
        state.update(text)
        state.set_classes(_CLASSES[status.network])
        total = status.stored.get(self._currency, 0)
        many = "sale" if status.stored_count == 1 else "sales"
        worth = f"{amount_text(total, self._currency)} {self._currency}"
        stored = f"Stored: {status.stored_count} {many}, {worth}"
        limits = None if status.terms is None else status.terms.limits.get(self._currency)
        if limits is not None:
            most = amount_text(limits.stored_hard, self._currency)
            stored += f"\nLimit: {limits.count_hard} sales, {most} {self._currency}"
            self._bar("total-bar", total, limits.stored_soft, limits.stored_hard)
            self._bar("count-bar", status.stored_count, limits.count_soft, limits.count_hard)
        self.query_one("#stored", Static).update(stored)

    def _bar(self, name: str, value: int, soft: int, hard: int) -> None:
        bar = self.query_one(f"#{name}", ProgressBar)
        bar.update(total=max(hard, 1), progress=value)
        bar.set_class(value > soft, "near")

    @on(Button.Pressed)
    def press(self, event: Button.Pressed) -> None:
        """A key of the pad."""
        amount = self.query_one("#amount", Input)
        key = str(event.button.label)
        amount.value = "" if key == "C" else amount.value + key

    @on(Input.Submitted, "#amount")
    def to_code(self) -> None:
        """Enter goes on to the code."""
        self.query_one("#code", Input).focus()

    @on(Input.Changed, "#code")
    def look(self, event: Input.Changed) -> None:
        """Every symbol is looked at as it is typed."""
        look = self.query_one("#look", Static)
        if event.value.upper().startswith("TSS1:"):
            look.update("A voucher.")
            look.set_classes("whole")
            return
        entry = look_at(event.value)
        look.update(f"{entry.pretty}  {entry.hint}" if entry.pretty else entry.hint)
        look.set_classes({Look.WRONG: "wrong", Look.WHOLE: "whole"}.get(entry.look, ""))

    @on(Input.Submitted, "#code")
    async def take(self, event: Input.Submitted) -> None:
        """Decide on the code."""
        try:
            minor_units = parse_amount(self.query_one("#amount", Input).value, self._currency)
            shown: Typed | VoucherShown = Typed(event.value)
            if event.value.upper().startswith("TSS1:"):
                shown = parse_spend(event.value)
            decision = await self._till.accept(shown, minor_units, self._currency)
        except PosError as error:
            self._answer(str(error), "refused")
            return
        self._show(decision, minor_units)

    def _show(self, decision: Decision, minor_units: int) -> None:
        self.show_state()
        if decision.refusal is not None:
            self._answer(f"{decision.refusal.value}\n{decision.message}", "refused")
            return
        self._answer(decision.message, "approved")
        for warning in decision.warnings:
            self._tell(f"Warning: {warning.value.replace('_', ' ').lower()}")
        item = f"items/{decision.item_id}"
        self.push_screen(Receipt(item, minor_units, self._currency, self._clock()))
        self._clear_fields()

    def _answer(self, text: str, kind: str) -> None:
        answer = self.query_one("#answer", Static)
        answer.update(text)
        answer.set_classes(kind)

    def action_clear(self) -> None:
        """Begin anew."""
        self._clear_fields()
        self._answer("", "")

    def _clear_fields(self) -> None:
        for name in ("amount", "code"):
            self.query_one(f"#{name}", Input).value = ""
        self.query_one("#amount", Input).focus()

    def action_request(self) -> None:
        """Show what the payer's device shall sign."""
        try:
            minor_units = parse_amount(self.query_one("#amount", Input).value, self._currency)
        except PosError as error:
            self._answer(str(error), "refused")
            return
        who = self._till.identity
        content = pay_request(
            who.vendor_id, who.terminal_id, minor_units, self._currency, self._clock()
        )
        self.push_screen(PayRequest(content, minor_units, self._currency))

    @work(exclusive=True, group="sync")
    async def action_sync(self) -> None:
        """Sync now."""
        self._tell("Syncing …")
        try:
            report = await self._till.sync(self._news)
        except PosError as error:
            self._tell(str(error))
        else:
            self._tell(f"Synced: {report.uploaded} uploaded.")
        self.show_state()

    @work(exclusive=True, group="automatic")
    async def _keep_synced(self) -> None:
        await self._till.keep_synced(self._news)

    def _news(self, text: str, sale: Sale | None) -> None:
        if sale is None:
            self._tell(text)
        else:
            amount = amount_text(sale.minor_units, sale.currency)
            self._tell(f"{amount} {sale.currency}: {sale.reason.replace('_', ' ').lower()}")
        self.show_state()

    def _tell(self, text: str) -> None:
        # None while the program is closing, when a sync may still tell of itself.
        for news in self.query("#news").results(RichLog):
            news.write(f"{self._clock():%H:%M:%S} {text}")
