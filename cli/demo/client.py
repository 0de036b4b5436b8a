"""How a program talks to Tallystick: TLS, a token, request ids, and errors that say what to do.

Nothing here is private to the demo; it is the generated stubs and the published contract.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from uuid_utils import UUID, uuid4

from tallystick.access.v1 import access_pb2
from tallystick.admin.v1 import review_service_pb2, review_service_pb2_grpc
from tallystick.offline.v1 import (
    code_service_pb2,
    code_service_pb2_grpc,
    offline_pb2,
    terminal_sync_service_pb2,
    terminal_sync_service_pb2_grpc,
)
from tallystick.payment.v1 import (
    payment_pb2,
    payment_service_pb2,
    payment_service_pb2_grpc,
    wallet_pb2,
    wallet_service_pb2,
    wallet_service_pb2_grpc,
)
from tallystick.type.v1 import money_pb2, position_pb2
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    site_service_pb2,
    site_service_pb2_grpc,
    terminal_service_pb2,
    terminal_service_pb2_grpc,
    user_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
)

Request = TypeVar("Request")
Response = TypeVar("Response")

# Seconds a call may take. Without one a client waits for ever on a network that lost the answer.
_DEADLINE = 10.0
_TRIES = 3


class ApiError(Exception):
    """A call was refused.

    Attributes:
        code: The gRPC code.
        reason: The `ErrorReason` of the service, or of `access.v1` when the platform itself
            refused; empty when the gateway did.
        message: What happened, then what to do.
        metadata: What the message quotes.
        retry_after: When the same call may succeed, where waiting helps.
    """

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code = error.code()
        self.reason = ""
        self.message = error.details() or ""
        self.metadata: dict[str, str] = {}
        self.retry_after: timedelta | None = None
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        for detail in status.details if status is not None else ():
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                self.reason, self.metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                self.retry_after = retry.retry_delay.ToTimedelta()
        # The gateway's rate limits answer in a header instead.
        for key, value in error.trailing_metadata() or ():
            if key == "retry-after":
                self.retry_after = timedelta(seconds=float(value))


class Gateway:
    """The way in: one connection, shared by everybody who signs in over it.

    Args:
        address: `host:port`.
        ca_file: Who signed its certificate.
    """

    def __init__(self, address: str, ca_file: Path) -> None:
        self.address = address
        self.ca_file = ca_file
        credentials = grpc.ssl_channel_credentials(root_certificates=ca_file.read_bytes())
        self._channel = grpc.aio.secure_channel(address, credentials)
        self._users = user_service_pb2_grpc.UserServiceStub(self._channel)
        self._auth = auth_service_pb2_grpc.AuthServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def register_payer(
        self, username: str, password: str, display_name: str
    ) -> user_pb2.User:
        """Ask for an account that pays. An operator must approve it."""
        request = user_service_pb2.RegisterUserRequest(
            request_id=str(uuid4()),
            username=username,
            password=password,
            display_name=display_name,
            role=access_pb2.ROLE_USER,
        )
        return (await send(self._users.RegisterUser, request)).user

    async def register_vendor(
        self,
        username: str,
        password: str,
        display_name: str,
        position: position_pb2.Position,
    ) -> user_pb2.User:
        """Ask for an account that is paid, at one place. An operator must approve it."""
        request = user_service_pb2.RegisterUserRequest(
            request_id=str(uuid4()),
            username=username,
            password=password,
            display_name=display_name,
            role=access_pb2.ROLE_VENDOR,
            site=user_pb2.Site(display_name=display_name, position=position),
        )
        return (await send(self._users.RegisterUser, request)).user

    async def sign_in(self, username: str, password: str) -> Client:
        """Open a session."""
        request = auth_service_pb2.LoginRequest(username=username, password=password)
        session = (await send(self._auth.Login, request)).session
        return Client(self._channel, session)


@dataclass
class Client:
    """One person or shop, signed in."""

    channel: grpc.aio.Channel
    session: auth_service_pb2.Session
    _token: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        self._token = (("authorization", f"Bearer {self.session.access_token}"),)
        self._users = user_service_pb2_grpc.UserServiceStub(self.channel)
        self._payments = payment_service_pb2_grpc.PaymentServiceStub(self.channel)
        self._wallets = wallet_service_pb2_grpc.WalletServiceStub(self.channel)
        self._sites = site_service_pb2_grpc.SiteServiceStub(self.channel)
        self._codes = code_service_pb2_grpc.CodeServiceStub(self.channel)
        self._terminals = terminal_sync_service_pb2_grpc.TerminalSyncServiceStub(self.channel)

    @property
    def name(self) -> str:
        """`users/{uuid}`."""
        return self.session.user

    def wallet_name(self, currency_code: str) -> str:
        """`users/{uuid}/wallets/{currency}`."""
        return f"{self.name}/wallets/{currency_code}"

    async def me(self) -> user_pb2.User:
        """One's own account."""
        request = user_service_pb2.GetUserRequest(name=self.name)
        return (await send(self._users.GetUser, request, self._token)).user

    async def pay(
        self,
        vendor: str,
        amount: money_pb2.Money,
        position: position_pb2.Position,
        *,
        request_id: UUID | None = None,
        reference: str = "",
    ) -> payment_pb2.Payment:
        """Pay a vendor and wait for the outcome: SUCCESS, FAILED or FLAGGED.

        Args:
            vendor: `users/{uuid}`.
            amount: Above zero.
            position: Where this device is.
            request_id: Stored by the caller before sending, so that it can ask again after a
                crash. Asking twice with one id pays once.
            reference: An order number.

        Raises:
            ApiError: refused; nothing was recorded.
        """
        request = payment_service_pb2.CreatePaymentRequest(
            request_id=str(request_id or uuid4()),
            vendor=vendor,
            amount=amount,
            position=position,
            reference=reference,
        )
        return (await send(self._payments.CreatePayment, request, self._token)).payment

    async def payment(self, name: str) -> payment_pb2.Payment:
        """A payment as it stands now."""
        request = payment_service_pb2.GetPaymentRequest(name=name)
        return (await send(self._payments.GetPayment, request, self._token)).payment

    async def refund(
        self, payment: str, amount: money_pb2.Money, reason: str
    ) -> payment_service_pb2.RefundPaymentResponse:
        """Give all or part of a payment back. The vendor's call."""
        request = payment_service_pb2.RefundPaymentRequest(
            name=payment, request_id=str(uuid4()), amount=amount, reason=reason
        )
        return await send(self._payments.RefundPayment, request, self._token)

    async def wallet(self, name: str) -> wallet_pb2.Wallet:
        """A wallet: one's own, or any for an operator."""
        request = wallet_service_pb2.GetWalletRequest(name=name)
        return (await send(self._wallets.GetWallet, request, self._token)).wallet

    async def transfers(self, wallet: str) -> AsyncIterator[wallet_pb2.Transfer]:
        """Every transfer that touched a wallet, newest first."""
        request = wallet_service_pb2.ListTransfersRequest(parent=wallet)
        while True:
            page = await send(self._wallets.ListTransfers, request, self._token)
            for transfer in page.transfers:
                yield transfer
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def sites(self) -> Sequence[user_pb2.Site]:
        """The places one sells at. The vendor's call."""
        request = site_service_pb2.ListSitesRequest(parent=self.name)
        return (await send(self._sites.ListSites, request, self._token)).sites

    async def revoke_terminal(self, name: str, reason: str) -> user_pb2.Terminal:
        """End a terminal of one's own. The vendor's call."""
        stub = terminal_service_pb2_grpc.TerminalServiceStub(self.channel)
        request = terminal_service_pb2.RevokeTerminalRequest(name=name, reason=reason)
        return (await send(stub.RevokeTerminal, request, self._token)).terminal

    async def move_offline(self, amount: money_pb2.Money) -> wallet_pb2.Wallet:
        """Set part of the online balance aside for offline codes."""
        request = wallet_service_pb2.MoveBalanceRequest(
            request_id=str(uuid4()),
            wallet=self.wallet_name(amount.currency_code),
            amount=amount,
            direction=wallet_service_pb2.MoveBalanceRequest.DIRECTION_TO_OFFLINE,
        )
        return (await send(self._wallets.MoveBalance, request, self._token)).wallet

    async def issue_codes(
        self,
        values: Sequence[int],
        currency_code: str,
        *,
        request_id: UUID | None = None,
        device: bytes | None = None,
    ) -> Sequence[code_service_pb2.IssuedCode]:
        """Codes to spend without network, one for each value in minor units. Shown only here.

        Args:
            values: Minor units, each one that is offered.
            currency_code: Of all of them.
            request_id: As for `pay`.
            device: Ed25519 public key of one's device, for vouchers beside the codes.
        """
        request = code_service_pb2.IssueCodesRequest(
            request_id=str(request_id or uuid4()),
            currency_code=currency_code,
            values=values,
            device_public_key=device or b"",
        )
        return (await send(self._codes.IssueCodes, request, self._token)).codes

    async def codes(self) -> Sequence[offline_pb2.Code]:
        """One's newest codes, ended ones too, without their symbols."""
        request = code_service_pb2.ListCodesRequest(parent=self.name)
        return (await send(self._codes.ListCodes, request, self._token)).codes

    async def revoke_codes(self, names: Sequence[str], reason: str) -> Sequence[offline_pb2.Code]:
        """Stop codes. A sale before this still counts."""
        request = code_service_pb2.RevokeCodesRequest(names=names, reason=reason)
        return (await send(self._codes.RevokeCodes, request, self._token)).codes

    async def offline_right(self) -> offline_pb2.OfflineRight:
        """How far one may spend offline."""
        request = code_service_pb2.GetOfflineRightRequest(owner=self.name)
        return (await send(self._codes.GetOfflineRight, request, self._token)).right

    async def offline_items(self, parent: str) -> Sequence[offline_pb2.Item]:
        """What a vendor's terminals (`users/…`), or one (`users/…/terminals/…`), uploaded, newest first."""
        request = terminal_sync_service_pb2.ListItemsRequest(parent=parent)
        return (await send(self._terminals.ListItems, request, self._token)).items


class Operator(Client):
    """Somebody who runs the platform, signed in."""

    @classmethod
    def of(cls, client: Client) -> Self:
        """The same session, with an operator's calls."""
        return cls(client.channel, client.session)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reviews = review_service_pb2_grpc.ReviewServiceStub(self.channel)

    async def top_up(
        self, wallet: str, amount: money_pb2.Money, reference: str
    ) -> wallet_pb2.Wallet:
        """Put money that was received outside into a wallet."""
        request = wallet_service_pb2.TopUpRequest(
            request_id=str(uuid4()), wallet=wallet, amount=amount, reference=reference
        )
        return (await send(self._wallets.TopUp, request, self._token)).wallet

    async def suspend(self, user: str, reason: str) -> user_pb2.User:
        """Stop an account."""
        request = user_service_pb2.SuspendUserRequest(name=user, reason=reason)
        return (await send(self._users.SuspendUser, request, self._token)).user

    async def double_spends(self) -> Sequence[offline_pb2.DoubleSpend]:
        """Codes that were spent twice, newest first, with the signed evidence."""
        request = code_service_pb2.ListDoubleSpendsRequest()
        return (await send(self._codes.ListDoubleSpends, request, self._token)).double_spends

    async def open_case(self, subject: str) -> review_service_pb2.Case:
        """The open case about a registration (`users/…`) or a payment (`payments/…`).

        A case opens within a second of what it is about, so this waits for it. Watching starts
        before listing: what opens between the two is in the stream, and nothing is missed.
        """
        watch = self._reviews.WatchCases(
            review_service_pb2.WatchCasesRequest(), metadata=self._token, timeout=_DEADLINE
        )
        try:
            await watch.read()  # holds the cursor alone: from now on nothing is missed
            async for case in self._open_cases():
                if subject in {case.user.name, case.payment.name}:
                    return case
            while True:
                message = await watch.read()
                assert isinstance(message, review_service_pb2.WatchCasesResponse)
                if subject in {message.case.user.name, message.case.payment.name}:
                    return message.case
        except grpc.aio.AioRpcError as error:
            raise ApiError(error) from error
        finally:
            watch.cancel()

    async def _open_cases(self) -> AsyncIterator[review_service_pb2.Case]:
        request = review_service_pb2.ListCasesRequest(state=review_service_pb2.Case.STATE_OPEN)
        while True:
            page = await send(self._reviews.ListCases, request, self._token)
            for case in page.cases:
                yield case
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def decide(self, case: str, *, approve: bool, reason: str) -> review_service_pb2.Case:
        """Decide a case. It has taken effect when this returns."""
        decisions = review_service_pb2.DecideCaseRequest
        request = decisions(
            name=case,
            decision=decisions.DECISION_APPROVE if approve else decisions.DECISION_REJECT,
            reason=reason,
        )
        return (await send(self._reviews.DecideCase, request, self._token)).case


async def send(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    token: tuple[tuple[str, str], ...] = (),
) -> Response:
    """Call, and ask again when the answer was lost.

    Every call made here may be repeated: it reads, or it carries a `request_id`, or a second time
    changes nothing more. So after UNAVAILABLE the very same message goes out again.

    Raises:
        ApiError: refused, or no answer in three tries.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            call: Any = method(request, metadata=token, timeout=_DEADLINE)
            response: Response = await call
            return response
        except grpc.aio.AioRpcError as error:
            refusal = ApiError(error)
            if refusal.code is not grpc.StatusCode.UNAVAILABLE or attempt == _TRIES:
                raise refusal from error
            # As long as the platform asks for; else with jitter, lest all clients come at once.
            jitter = timedelta(milliseconds=2**attempt * (50 + secrets.randbelow(50)))
            wait = refusal.retry_after or jitter
            await asyncio.sleep(wait.total_seconds())
    raise AssertionError
