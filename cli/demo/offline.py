"""The offline part of the demo's story: codes, two terminals without network, and one code spent twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from cli.demo.client import ApiError, Gateway, Operator
from cli.demo.network import Said, Terminal, namespace
from cli.demo.person import Person
from cli.demo.screen import Screen
from cli.demo.wording import CURRENCY, amount_text, inr
from tallystick.offline.v1 import offline_pb2
from tallystick.payment.v1 import wallet_pb2

Item = offline_pb2.Item
Right = offline_pb2.OfflineRight

_VALUES = (100_00, 100_00, 50_00, 50_00, 20_00)
# Held results and a suspension reach their services within a second; on a busy machine this is ample.
_ARRIVAL_SECONDS = 10.0


class OfflineActs:
    """A payer's codes, spent where there is no network.

    Args:
        gateway: Where the terminals sync.
        operator: Who looks.
        screen: Where it is shown.
        directory: Where terminals and passwords may be kept.
    """

    def __init__(
        self, gateway: Gateway, operator: Operator, screen: Screen, directory: Path
    ) -> None:
        self._gateway = gateway
        self._operator = operator
        self._screen = screen
        self._directory = directory

    async def tell(self, payer: Person, shop: Person, stall: Person) -> None:
        """Every act. In the end the payer has spent 270.00 at the shop, and may not spend offline any more.

        Raises:
            CheckFailed: the platform did something else than it promises.
            ApiError: it refused what it should have accepted.
        """
        codes = await self._take_codes(payer)
        tea, books = await self._enrol(shop), await self._enrol(stall)
        await self._sell_without_network(payer, tea, books, codes)
        await self._settle(payer, tea, books, shop)
        await self._twice(payer, books)

    async def _take_codes(self, payer: Person) -> list[str]:
        screen = self._screen
        screen.act(f"{payer.display_name} goes where the network fails, and takes codes along")
        wallet = await payer.client.move_offline(inr(400_00))
        screen.step("She sets 400.00 aside for it", f"online {amount_text(wallet.online)}")
        screen.check(
            wallet.offline.minor_units == 400_00, "the offline balance is 400.00", wallet.offline
        )
        issued = await payer.client.issue_codes(_VALUES, CURRENCY)
        for each in issued:
            screen.step(each.symbols, f"worth {amount_text(each.code.value)}")
        screen.check(len(issued) == len(_VALUES), "five codes, shown once", len(issued))
        wallet = await payer.client.wallet(payer.wallet_name)
        screen.check(
            (wallet.offline.minor_units, wallet.reserved.minor_units) == (80_00, 320_00),
            "320.00 is reserved behind them: nobody can spend it otherwise",
            wallet,
        )
        return [each.symbols for each in issued]

    async def _enrol(self, vendor: Person) -> Terminal:
        screen = self._screen
        screen.act(f"{vendor.display_name} enrols a terminal while there is network")
        (site,) = [found for found in await vendor.client.sites() if found.open]
        slug = vendor.username
        password_file = self._directory / f"{slug}.password"
        password_file.touch(mode=0o600)
        password_file.write_text(vendor.password)
        terminal = Terminal(self._directory / slug, self._gateway.address, self._gateway.ca_file)
        said = await terminal.run(
            "enroll",
            "--username",
            vendor.username,
            "--password-file",
            str(password_file),
            "--site",
            site.name,
            "--name",
            f"Counter of {vendor.display_name}",
        )
        self._expect(said, 0, "it has a key of its own, and keys and lists to check codes with")
        return terminal

    async def _sell_without_network(
        self, payer: Person, tea: Terminal, books: Terminal, codes: Sequence[str]
    ) -> None:
        screen = self._screen
        how = "each terminal in a network namespace of its own" if namespace() else "no route"
        screen.act(f"The network is gone ({how})")
        tea.has_network = books.has_network = False
        said = await tea.run("sync")
        self._expect(said, 1, "a sync finds nobody, and says so")
        sales = ((0, "100.00"), (1, "80.00"), (2, "50.00"), (3, "40.00"))
        for number, amount in sales:
            said = await self._accept(tea, codes[number], amount)
            self._expect(said, 0, f"{amount} approved offline, provisionally")
        last = codes[4]
        mistyped = ("8" if last[0] != "8" else "9") + last[1:]
        said = await self._accept(tea, mistyped, "20.00")
        self._refused(said, "a mistyped symbol is caught by the code's own check symbol")
        said = await self._accept(tea, codes[0], "100.00")
        self._refused(said, "a code that was spent here is not taken again")
        screen.step(
            f"And {payer.display_name} shows the book stall, which cannot know, a code that is spent"
        )
        said = await self._accept(books, codes[0], "100.00")
        self._expect(said, 0, "with both sides offline it cannot be prevented: the stall takes it")

    async def _accept(self, terminal: Terminal, code: str, amount: str) -> Said:
        said = await terminal.run(
            "accept", "--code", code, "--amount", amount, "--currency", CURRENCY
        )
        outcome = str(said.answer.get("reason") or said.answer.get("decision") or said.words)
        self._screen.step(f"{code} for {amount}", outcome)
        return said

    async def _settle(self, payer: Person, tea: Terminal, books: Terminal, shop: Person) -> None:
        screen = self._screen
        screen.act("The network is back, and both terminals sync")
        tea.has_network = books.has_network = True
        before = (await self._operator.wallet(shop.wallet_name)).online.minor_units
        started = time.monotonic()
        said = await tea.run("sync")
        self._expect(said, 0, f"four sales settled, in {time.monotonic() - started:.1f} s")
        results = [str(item["reason"]) for item in said.answer["items"]]
        screen.table(
            ("Tea house", "amount", "result"),
            [
                (f"items/…{str(item['item'])[-12:]}", str(item["amount"]), str(item["reason"]))
                for item in said.answer["items"]
            ],
        )
        screen.check(
            sorted(results) == ["PARTIALLY_SETTLED"] * 2 + ["SETTLED"] * 2,
            "two whole, two in part with the rest back in the payer's offline balance",
            results,
        )
        after = (await self._operator.wallet(shop.wallet_name)).online.minor_units
        screen.check(after - before == 270_00, "the tea house has 270.00 more", after - before)
        again = await tea.run("sync")
        self._expect(again, 0, "another sync finds nothing to do")
        now = (await self._operator.wallet(shop.wallet_name)).online.minor_units
        screen.check(now == after, "and nothing is paid twice", now - after)
        wallet = await payer.client.wallet(payer.wallet_name)
        await self._show(payer, wallet)
        said = await books.run("sync")
        self._expect(said, 0, "the book stall's sync went through")
        results = [str(item["reason"]) for item in said.answer["items"]]
        screen.check(
            results == ["DUPLICATE_CODE"], "its sale is refused: DUPLICATE_CODE", said.answer
        )

    async def _twice(self, payer: Person, books: Terminal) -> None:
        screen = self._screen
        screen.act("One code at two shops has consequences")
        right = await self._until_suspended(payer)
        screen.step(
            f"{payer.display_name}'s right to spend offline",
            Right.Level.Name(right.level),
            right.reason,
        )
        screen.check(
            right.level == Right.LEVEL_SUSPENDED, "is suspended, without anybody's doing", right
        )
        try:
            await payer.client.issue_codes([20_00], CURRENCY)
        except ApiError as error:
            screen.step("She asks for another code", error.code.name, error.message)
            screen.check(
                error.code is grpc.StatusCode.FAILED_PRECONDITION
                and error.reason == "OFFLINE_SUSPENDED",
                "refused with OFFLINE_SUSPENDED",
                error,
            )
        else:
            screen.fail("refused with OFFLINE_SUSPENDED", "a code")
        states = sorted(
            offline_pb2.Code.State.Name(code.state).removeprefix("STATE_")
            for code in await payer.client.codes()
        )
        screen.check(
            states == ["REVOKED"] + ["SPENT"] * 4,
            "four codes are spent, the fifth is revoked; its money comes back after the upload window",
            states,
        )
        status = await books.run("status")
        self._expect(status, 0, "the stall's terminal has nothing left to upload")

    async def _until_suspended(self, payer: Person) -> offline_pb2.OfflineRight:
        deadline = time.monotonic() + _ARRIVAL_SECONDS
        while True:
            right = await payer.client.offline_right()
            if right.level == Right.LEVEL_SUSPENDED or time.monotonic() > deadline:
                return right
            await asyncio.sleep(0.02)

    async def _show(self, payer: Person, wallet: wallet_pb2.Wallet) -> None:
        row = (
            payer.display_name,
            *(amount_text(m) for m in (wallet.online, wallet.offline, wallet.reserved)),
        )
        self._screen.table((f"Balances, {CURRENCY}", "online", "offline", "reserved"), [row])
        # 400.00 set aside, 270.00 spent; 20.00 stays reserved behind the fifth code.
        self._screen.check(
            (wallet.offline.minor_units, wallet.reserved.minor_units) == (110_00, 20_00),
            "what she did not spend of her codes is hers again",
            wallet,
        )

    def _expect(self, said: Said, code: int, text: str) -> None:
        self._screen.check(said.code == code, text, f"exit code {said.code}: {said.words}")

    def _refused(self, said: Said, text: str) -> None:
        self._screen.check(said.code == 1, text, f"exit code {said.code}: {said.words}")
