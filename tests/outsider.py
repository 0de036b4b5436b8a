"""Somebody outside a running stack, with everything an attacker may have: accounts, tokens, raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from uuid_utils import uuid4

from bench.seed import CURRENCY, seed
from cli import audit
from services import sql
from services.user.domain import signing_key
from services.user.signing import KeyRing
from services.user.store import signing_keys
from tallystick.access.v1 import access_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, wallet_service_pb2
from tallystick.type.v1 import money_pb2, position_pb2
from tallystick.user.v1 import (
    auth_service_pb2,
    terminal_service_pb2,
    user_pb2,
    user_service_pb2,
)
from tests import stacks
from tests.gateway import Answer, Browser, until
from tests.tokens import claims_of

# Wide enough that what is refused here is refused for another reason.
WIDE = {
    f"TALLYSTICK_RATE_{name}": "1000000/1000000/1000"
    for name in ("PAYMENT", "READ", "WRITE", "PUBLIC", "OPERATOR", "TERMINAL")
}
PASSWORD = "a long enough phrase"
PAYMENTS = "/tallystick.payment.v1.PaymentService/"
WALLETS = "/tallystick.payment.v1.WalletService/"
USERS = "/tallystick.user.v1.UserService/"
SITES = "/tallystick.user.v1.SiteService/"
AUTH = "/tallystick.user.v1.AuthService/"
REVIEWS = "/tallystick.admin.v1.ReviewService/"
PAY = PAYMENTS + "CreatePayment"
LOGIN = AUTH + "Login"


class Outsider:
    """One connection to a stack, and the accounts made for it.

    Attributes:
        stack: What is attacked.
        payers: Approved payers with money: `name` and `token` of each.
        vendor: An approved vendor with a site: `name` and `token`.
        admin: The first admin: `name` and `token`.
        position: Where the vendor's site is.
    """

    def __init__(self, stack, found, keys):
        self.stack = stack
        self._key_ring, self._key = keys
        authority = Path(stack.endpoints.ca_file).read_bytes()
        credentials = grpc.ssl_channel_credentials(root_certificates=authority)
        self._channel = grpc.secure_channel(stack.endpoints.grpc, credentials)
        self.payers = [SimpleNamespace(token=token, name=_subject(token)) for token in found.tokens]
        name, latitude, longitude = found.vendors[0]
        self.vendor = SimpleNamespace(token=self.token("VENDOR", subject=name), name=name)
        self.position = position_pb2.Position(latitude=latitude, longitude=longitude)
        self.admin = self.sign_in(stack.endpoints.admin_user, stack.endpoints.admin_password)

    @property
    def payer(self):
        return self.payers[0]

    def close(self):
        self._channel.close()

    def ask(self, path, request=b"", token=None, *, metadata=(), compression=None, timeout=10):
        """One call of any kind. Answers what came back; of a stream, its first message."""
        content = request if isinstance(request, bytes) else request.SerializeToString()
        headers = list(metadata)
        if token:
            headers.append(("authorization", f"Bearer {token}"))
        rpc = self._channel.unary_stream(path)(
            content, metadata=headers, timeout=timeout, compression=compression
        )
        messages = []
        with contextlib.suppress(grpc.RpcError):
            messages.append(next(rpc, b""))
        if messages:  # a stream may go on for ever
            rpc.cancel()
            return Answer(grpc.StatusCode.OK, "", {}, messages, None)
        status = rpc_status.from_call(rpc)
        return Answer(
            rpc.code(), rpc.details() or "", dict(rpc.trailing_metadata() or ()), messages, status
        )

    def call(self, path, request=b"", token=None):
        """The message of a call that is answered."""
        answer = self.ask(path, request, token)
        assert answer.code is grpc.StatusCode.OK, answer
        return answer.messages[0]

    def web(self):
        """The same from a browser; the caller closes it."""
        host, _, port = self.stack.endpoints.grpc.rpartition(":")
        return Browser(int(port), Path(self.stack.endpoints.ca_file), host)

    def token(self, *roles, **claims):
        """A token that the user service's own key signed."""
        return self.sign(claims_of(*roles, **claims))

    def sign(self, claims):
        """Any claims, signed with that key."""
        return self._key_ring.sign(self._key, claims)

    def sign_in(self, username, password):
        request = auth_service_pb2.LoginRequest(username=username, password=password)
        session = auth_service_pb2.LoginResponse.FromString(self.call(LOGIN, request)).session
        return SimpleNamespace(
            token=session.access_token, name=session.user, refresh_token=session.refresh_token
        )

    def registered(self, role):
        """Somebody whom nobody has approved."""
        site = None
        if role == access_pb2.ROLE_VENDOR:
            site = user_pb2.Site(display_name="Shop", position=self.position)
        username = f"outsider-{uuid4().hex[:12]}"
        request = user_service_pb2.RegisterUserRequest(
            request_id=str(uuid4()),
            username=username,
            password=PASSWORD,
            display_name="Somebody",
            role=role,
            site=site,
        )
        self.call(USERS + "RegisterUser", request)
        return self.sign_in(username, PASSWORD)

    def approved(self, role):
        person = self.registered(role)
        self.decide("Approve", person)
        until(lambda: self.is_active(person))
        return person

    def suspended(self, role):
        person = self.approved(role)
        self.decide("Suspend", person)
        until(lambda: not self.is_active(person))
        return person

    def decide(self, verb, person):
        request = getattr(user_service_pb2, f"{verb}UserRequest")(name=person.name, reason="x")
        self.call(f"{USERS}{verb}User", request, self.admin.token)

    def is_active(self, person):
        """The ledger lets them move money."""
        request = wallet_service_pb2.GetWalletRequest(name=wallet_of(person))
        answer = self.ask(WALLETS + "GetWallet", request, self.admin.token)
        if answer.code is not grpc.StatusCode.OK:
            return False
        return wallet_service_pb2.GetWalletResponse.FromString(answer.messages[0]).wallet.active

    def a_payment(self, amount=1_00, **other):
        facts = {
            "request_id": str(uuid4()),
            "vendor": self.vendor.name,
            "amount": money(amount) if isinstance(amount, int) else amount,
            "position": self.position,
        }
        return payment_service_pb2.CreatePaymentRequest(**{**facts, **other})

    def books(self):
        """Every balance and account state, and how many rows there are of what calls leave behind."""
        tables = ("payments", "transfers", "requests")
        balances = (
            "SELECT wallet_id, online, offline, reserved, held FROM wallets"
            " WHERE online + offline + reserved + held <> 0 ORDER BY 1"
        )
        found = [self._read("payment", balances)]
        found += [self._read("payment", f"SELECT count(*) FROM {table}") for table in tables]  # noqa: S608
        found.append(
            self._read("user", "SELECT state, role, tier, count(*) FROM users GROUP BY 1, 2, 3")
        )
        found.append(self._read("user", "SELECT count(*) FROM sites"))
        found.append(self._read("user", "SELECT count(*) FROM signing_keys"))
        return found

    def is_settled(self):
        """No payment waits for its outcome."""
        waiting = (payment_pb2.Payment.STATE_PENDING, payment_pb2.Payment.STATE_PROCESSING)
        query = f"SELECT count(*) FROM payments WHERE state IN {waiting}"  # noqa: S608
        return self._read("payment", query) == [(0,)]

    def _read(self, service, query):
        url = self.stack.endpoints.services[service].database_url
        path = url.removeprefix("sqlite+aiosqlite:///")
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()

    def broken_laws(self):
        findings = asyncio.run(audit.audit_stack(self.stack.endpoints))
        return [finding for finding in findings.values() if not finding.holds]


@contextlib.contextmanager
def outsider_of_a_stack(directory):
    """A stack of the dev profile, attacked. In the end every law holds and nothing had to be started again."""
    with stacks.running(directory, environment=WIDE) as stack:
        before = stack.endpoints
        key_file = directory / "run" / "data" / "dev" / "key-encryption-key"
        found = asyncio.run(seed(before, key_file, payers=4, vendors=2))
        outsider = Outsider(stack, found, asyncio.run(_signing_key(before, key_file)))
        try:
            yield outsider
        finally:
            outsider.close()
        assert outsider.broken_laws() == []
        assert stack.endpoints.processes == before.processes


async def _signing_key(endpoints, key_file):
    engine = sql.create_engine(endpoints.services["user"].database_url)
    try:
        async with sql.reading(engine) as connection:
            keys = await signing_keys.list_keys(connection)
    finally:
        await engine.dispose()
    return KeyRing.read(key_file), signing_key.signing(keys, now=_now())


def _now():
    return sql.instant(int(time.time() * 1_000_000))


def enrolled(outside, vendor, site):
    """A terminal of a vendor's, signed in with a key of its own.

    Args:
        outside: Whoever can `call`.
        vendor: With `token` and `name`.
        site: Where it stands.
    """
    key = Ed25519PrivateKey.generate()
    terminal = user_pb2.Terminal(
        display_name="Till", site=site, public_key=key.public_key().public_bytes_raw()
    )
    request = terminal_service_pb2.EnrollTerminalRequest(request_id=str(uuid4()), terminal=terminal)
    path = "/tallystick.user.v1.TerminalService/EnrollTerminal"
    answer = outside.call(path, request, vendor.token)
    name = terminal_service_pb2.EnrollTerminalResponse.FromString(answer).terminal.name
    now = int(time.time())
    claims = {"iss": name, "sub": name, "aud": "tallystick", "iat": now, "exp": now + 60}
    assertion = jwt.encode({**claims, "jti": str(uuid4())}, key, "EdDSA")
    asked = auth_service_pb2.AuthenticateTerminalRequest(assertion=assertion)
    path = "/tallystick.user.v1.AuthService/AuthenticateTerminal"
    session = auth_service_pb2.AuthenticateTerminalResponse.FromString(outside.call(path, asked))
    return SimpleNamespace(token=session.access_token, name=name)


def money(minor_units, currency_code=CURRENCY):
    return money_pb2.Money(minor_units=minor_units, currency_code=currency_code)


def wallet_of(person, currency_code=CURRENCY):
    return f"{person.name}/wallets/{currency_code}"


def fields(answer):
    """The fields that a BadRequest names."""
    bad = answer.detail(error_details_pb2.BadRequest)
    return {violation.field for violation in bad.field_violations} if bad is not None else set()


def _subject(token):
    return jwt.decode(token, options={"verify_signature": False})["sub"]


def with_claims(token, **claims):
    """A token with other claims under its old signature."""
    head, body, signature = token.split(".")
    changed = json.loads(jwt.utils.base64url_decode(body)) | claims
    return f"{head}.{jwt.utils.base64url_encode(json.dumps(changed).encode()).decode()}.{signature}"
