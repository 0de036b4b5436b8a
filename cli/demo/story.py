"""The story the demo tells: three payers, two shops, an operator, every rupee accounted for."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from pathlib import Path

import grpc
from uuid_utils import UUID, uuid4

from cli.demo.client import ApiError, Gateway, Operator
from cli.demo.offline import OfflineActs
from cli.demo.person import Person
from cli.demo.screen import Screen
from cli.demo.wording import CURRENCY, amount_text, change, inr, outcome_text, state_text
from tallystick.access.v1 import access_pb2
from tallystick.payment.v1 import payment_pb2, wallet_pb2
from tallystick.type.v1 import position_pb2
from tallystick.user.v1 import user_pb2

# The tea house, in Bengaluru, and a city 290 km away.
BENGALURU = position_pb2.Position(latitude=12.9716, longitude=77.5946, accuracy_meters=20)
CHENNAI = position_pb2.Position(latitude=13.0827, longitude=80.2707, accuracy_meters=20)
# How long what takes effect "within a second" may take.
_SOON_SECONDS = 1.0
# Copies of an account travel between services; on a busy machine this is ample.
_ARRIVAL_SECONDS = 10.0

Payment = payment_pb2.Payment


class Story:
    """Tells it through a gateway, act by act; each act starts from the balances of the last.

    Args:
        gateway: A stack nobody else moves money on.
        operator: Its admin.
        screen: Where it is shown.
        directory: Where terminals and passwords may be kept.
    """

    def __init__(
        self, gateway: Gateway, operator: Operator, screen: Screen, directory: Path
    ) -> None:
        self._directory = directory
        self._gateway = gateway
        self._operator = operator
        self._screen = screen

    async def tell(self) -> None:
        """Every act in order.

        Raises:
            CheckFailed: the platform did something else than it promises.
            ApiError: it refused what it should have accepted.
        """
        await self._open_accounts()
        await self._top_up()
        third = await self._pay_three_times()
        await self._replay(third)
        await self._pay_from_far_away()
        await self._overdraw()
        await self._pay_too_often()
        await self._refund(third)
        await self._statement()
        await OfflineActs(self._gateway, self._operator, self._screen, self._directory).tell(
            self._chitra, self._shop, self._stall
        )
        await self._suspend()
        await self._account_for_everything()

    async def _open_accounts(self) -> None:
        screen = self._screen
        screen.act("Three payers, a tea house and a book stall open accounts")
        self._asha = await self._register("Asha")
        self._bela = await self._register("Bela")
        self._chitra = await self._register("Chitra")
        self._shop = await self._register("Chai Point", BENGALURU)
        self._stall = await self._register("Book Stall", BENGALURU)
        await self._refused(
            "Asha pays 10.00 straight away",
            self._pay(self._asha, 10_00),
            grpc.StatusCode.FAILED_PRECONDITION,
            "PAYER_NOT_ACTIVE",
        )
        for person in self._people:
            case = await self._operator.open_case(person.client.name)
            await self._operator.decide(case.name, approve=True, reason="Papers seen.")
            # The old token still says PENDING: roles come with the next sign-in.
            person.client = await self._gateway.sign_in(person.username, person.password)
            me = await person.client.me()
            screen.step(f"The operator approves {person.display_name}", state_text(me))
            screen.check(
                me.state == user_pb2.User.STATE_ACTIVE,
                f"{person.display_name} is active",
                state_text(me),
            )

    async def _register(self, name: str, site: position_pb2.Position | None = None) -> Person:
        username = name.lower().replace(" ", ".")
        password = secrets.token_urlsafe(12)
        if site is None:
            user = await self._gateway.register_payer(username, password, name)
        else:
            user = await self._gateway.register_vendor(username, password, name, site)
        role = access_pb2.Role.Name(user.role).removeprefix("ROLE_")
        self._screen.step(f"{name} registers as {role}", state_text(user))
        self._screen.check(
            user.state == user_pb2.User.STATE_PENDING_APPROVAL,
            f"{name} waits for approval",
            state_text(user),
        )
        client = await self._gateway.sign_in(username, password)
        return Person(name, username, password, client)

    async def _top_up(self) -> None:
        screen = self._screen
        screen.act("Money comes in at the counter")
        for person, minor_units in (
            (self._asha, 1_000_00),
            (self._bela, 100_00),
            (self._chitra, 500_00),
        ):
            await self._until_wallet(person, active=True, seconds=_ARRIVAL_SECONDS)
            wallet = await self._operator.top_up(
                person.wallet_name, inr(minor_units), f"Counter receipt {person.username}"
            )
            screen.step(f"{person.display_name} hands over {amount_text(inr(minor_units))}")
            screen.check(
                wallet.online.minor_units == minor_units,
                f"{person.display_name}'s online balance is {amount_text(wallet.online)}",
                wallet.online,
            )
        for vendor in (self._shop, self._stall):
            await self._until_wallet(vendor, active=True, seconds=_ARRIVAL_SECONDS)
        await self._show_balances()

    async def _pay_three_times(self) -> Payment:
        self._screen.act("Asha pays three times")
        payments = []
        for minor_units, order in ((120_00, "Order 1"), (80_50, "Order 2"), (45_00, "Order 3")):
            payment = await self._pay(self._asha, minor_units, title=order)
            self._expect(payment, Payment.STATE_SUCCESS, f"{order} is paid")
            payments.append(payment)
        await self._show_balances()
        await self._expect_online(self._asha, 754_50)
        await self._expect_online(self._shop, 245_50)
        return payments[-1]

    async def _replay(self, paid: Payment) -> None:
        screen = self._screen
        screen.act("An answer is lost, and the terminal asks again")
        again = await self._asha.client.pay(
            paid.vendor,
            paid.amount,
            BENGALURU,
            request_id=UUID(paid.request_id),
            reference=paid.reference,
        )
        screen.step(f"{paid.reference} again, with the same request_id", paid.request_id)
        screen.check(again == paid, "the answer is the first one, to the byte", again)
        await self._expect_online(self._asha, 754_50, "nothing was taken twice")
        await self._refused(
            "The same request_id for another amount",
            self._asha.client.pay(
                paid.vendor, inr(9_00), BENGALURU, request_id=UUID(paid.request_id)
            ),
            grpc.StatusCode.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
        )

    async def _pay_from_far_away(self) -> None:
        screen = self._screen
        screen.act("Somebody pays with Asha's account from Chennai, 290 km away")
        held = []
        for minor_units in (200_00, 150_00):
            payment = await self._pay(self._asha, minor_units, CHENNAI, title="From Chennai")
            self._expect(
                payment, Payment.STATE_FLAGGED, f"{amount_text(payment.amount)} is held for review"
            )
            screen.check(
                "DISTANCE_OVER_LIMIT" in payment.risk.reasons,
                "the reason is the distance",
                list(payment.risk.reasons),
            )
            held.append(payment)
        await self._show_balances()
        wallet = await self._wallet(self._asha)
        screen.check(wallet.held.minor_units == 350_00, "350.00 is held, not gone", wallet.held)

        for payment, approve in zip(held, (True, False), strict=True):
            case = await self._operator.open_case(payment.name)
            reason = "Asha is travelling." if approve else "Asha does not know of this one."
            await self._operator.decide(case.name, approve=approve, reason=reason)
            now = await self._asha.client.payment(payment.name)
            verb = "approves" if approve else "rejects"
            screen.step(
                f"The operator {verb} {amount_text(payment.amount)}: {reason}", outcome_text(now)
            )
            if approve:
                self._expect(now, Payment.STATE_SUCCESS, "approved: the tea house has the money")
            else:
                self._expect(now, Payment.STATE_FAILED, "rejected: the money went back to Asha")
        await self._show_balances()
        await self._expect_online(self._asha, 554_50)
        wallet = await self._wallet(self._asha)
        screen.check(wallet.held.minor_units == 0, "nothing is held any more", wallet.held)

    async def _overdraw(self) -> None:
        self._screen.act("Asha tries to pay more than she has")
        payment = await self._pay(self._asha, 600_00, title="A large order")
        self._expect(payment, Payment.STATE_FAILED, "the payment failed, on record")
        self._screen.check(
            payment.failure_reason == Payment.FAILURE_REASON_INSUFFICIENT_FUNDS,
            "the reason is INSUFFICIENT_FUNDS",
            payment.failure_reason,
        )
        await self._expect_online(self._asha, 554_50, "nothing moved")

    async def _pay_too_often(self) -> None:
        screen = self._screen
        screen.act("Bela pays eleven times within a minute")
        paid = 0
        with screen.progress("Ten payments of 1.00", 10) as advance:
            for _ in range(10):
                payment = await self._pay(self._bela, 1_00)
                paid += payment.state == Payment.STATE_SUCCESS
                advance()
        screen.check(paid == 10, "ten are paid", paid)
        refusal = await self._refused(
            "The eleventh",
            self._pay(self._bela, 1_00),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "RATE_LIMITED",
        )
        wait = refusal.retry_after.total_seconds() if refusal.retry_after else 0
        screen.check(0 < wait <= 60, f"and is told when to come back: in {wait:.0f} s", wait)
        await self._expect_online(self._bela, 90_00)

    async def _refund(self, paid: Payment) -> None:
        screen = self._screen
        screen.act("The tea house gives part of an order back")
        answer = await self._shop.client.refund(paid.name, inr(30_50), "The samosa was cold.")
        screen.step(
            f"{amount_text(answer.transfer.amount)} of {amount_text(paid.amount)} goes back",
            answer.transfer.name,
        )
        screen.check(
            answer.payment.refunded.minor_units == 30_50, "it is on the payment", answer.payment
        )
        await self._refused(
            "As much again",
            self._shop.client.refund(paid.name, inr(30_50), "The tea too."),
            grpc.StatusCode.FAILED_PRECONDITION,
            "REFUND_EXCEEDS_PAYMENT",
        )
        await self._show_balances()
        await self._expect_online(self._asha, 585_00)
        await self._expect_online(self._shop, 425_00)

    async def _statement(self) -> None:
        screen = self._screen
        screen.act("Asha reads her statement")
        wallet = await self._wallet(self._asha)
        transfers = [
            transfer async for transfer in self._asha.client.transfers(self._asha.wallet_name)
        ]
        transfers.reverse()
        rows, balance = [], 0
        for transfer in transfers:
            online = change(transfer, f"{wallet.name}/online")
            held = change(transfer, f"{wallet.name}/held")
            balance += online
            purpose = wallet_pb2.Transfer.Purpose.Name(transfer.purpose)
            rows.append(
                (
                    purpose.removeprefix("PURPOSE_"),
                    amount_text(inr(online)) if online else "",
                    amount_text(inr(held)) if held else "",
                    amount_text(inr(balance)),
                )
            )
        columns = ("Asha, oldest first", "online", "held", "online balance")
        screen.table(columns, rows)
        screen.check(
            balance == wallet.online.minor_units,
            f"{len(transfers)} transfers add up to the balance of {amount_text(wallet.online)}",
            balance,
        )

    async def _suspend(self) -> None:
        screen = self._screen
        screen.act("The operator suspends the tea house")
        user = await self._operator.suspend(self._shop.client.name, "Complaints.")
        screen.step("Suspended, for complaints", state_text(user))
        seconds = await self._until_wallet(self._shop, active=False, seconds=_SOON_SECONDS)
        screen.check(
            seconds <= _SOON_SECONDS, f"in effect everywhere after {seconds * 1000:.0f} ms", seconds
        )
        await self._refused(
            "Asha pays 10.00 there",
            self._pay(self._asha, 10_00),
            grpc.StatusCode.FAILED_PRECONDITION,
            "VENDOR_NOT_ACTIVE",
        )
        await self._refused(
            "The shop uses its token, which has not expired",
            self._shop.client.me(),
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_REVOKED",
        )

    async def _account_for_everything(self) -> None:
        screen = self._screen
        screen.act("Where is all the money?")
        await self._show_balances()
        wallets = [await self._wallet(person) for person in self._people]
        total = sum(
            account.minor_units
            for wallet in wallets
            for account in (wallet.online, wallet.offline, wallet.reserved, wallet.held)
        )
        screen.check(total == 1_600_00, "what came in at the counter is in the five wallets", total)

    @property
    def _people(self) -> tuple[Person, ...]:
        return self._asha, self._bela, self._chitra, self._shop, self._stall

    async def _pay(
        self,
        payer: Person,
        minor_units: int,
        position: position_pb2.Position = BENGALURU,
        *,
        title: str = "",
    ) -> Payment:
        """Pay the shop; shown when it has a title."""
        started = time.monotonic()
        payment = await payer.client.pay(
            self._shop.client.name,
            inr(minor_units),
            position,
            request_id=uuid4(),
            reference=title,
        )
        if title:
            outcome = f"{outcome_text(payment)}, {(time.monotonic() - started) * 1000:.0f} ms"
            self._screen.step(f"{title}: {amount_text(payment.amount)}", outcome)
        return payment

    async def _wallet(self, person: Person) -> wallet_pb2.Wallet:
        return await self._operator.wallet(person.wallet_name)

    async def _until_wallet(self, person: Person, *, active: bool, seconds: float) -> float:
        """Wait until the payment service knows of a decision; the seconds it took."""
        started = time.monotonic()
        while True:
            try:
                if (await self._wallet(person)).active == active:
                    return time.monotonic() - started
            except ApiError as error:
                if error.reason != "WALLET_NOT_FOUND":
                    raise
            if time.monotonic() - started > seconds:
                what = "active" if active else "suspended"
                self._screen.fail(
                    f"{person.display_name}'s wallet is {what} within {seconds:.0f} s",
                    "still as before",
                )
            await asyncio.sleep(0.01)

    async def _refused(
        self, attempt: str, call: Awaitable[object], code: grpc.StatusCode, reason: str
    ) -> ApiError:
        """Expect a refusal."""
        text = f"refused with {reason}"
        try:
            seen = await call
        except ApiError as error:
            refusal = error
        else:
            self._screen.fail(text, seen)
        self._screen.step(attempt, refusal.code.name, refusal.message)
        self._screen.check(refusal.code is code and refusal.reason == reason, text, refusal)
        return refusal

    async def _expect_online(self, person: Person, minor_units: int, text: str = "") -> None:
        online = (await self._wallet(person)).online
        what = text or f"{person.display_name} has {amount_text(inr(minor_units))} online"
        self._screen.check(online.minor_units == minor_units, what, amount_text(online))

    def _expect(self, payment: Payment, state: int, text: str) -> None:
        self._screen.check(payment.state == state, text, payment)

    async def _show_balances(self) -> None:
        rows = []
        for person in self._people:
            wallet = await self._wallet(person)
            rows.append((person.display_name, amount_text(wallet.online), amount_text(wallet.held)))
        self._screen.table((f"Balances, {CURRENCY}", "online", "held"), rows)
