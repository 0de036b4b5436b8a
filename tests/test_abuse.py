"""Bad input through the real Envoy into the real services: a precise answer, and nothing changed."""

import asyncio
import random
import re
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import grpc
import jwt
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc_status import rpc_status
from uuid_utils import UUID, uuid4

from bench.seed import CURRENCY, seed
from buf.validate import validate_pb2
from cli import audit
from services import sql
from services.gateway.contract import services
from services.rpc.contract import rule as rule_of
from services.user.domain import signing_key
from services.user.signing import KeyRing
from services.user.store import signing_keys
from tallystick.access.v1 import access_pb2
from tallystick.payment.v1 import payment_pb2, wallet_service_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.type.v1 import money_pb2, position_pb2
from tallystick.user.v1 import auth_service_pb2, site_service_pb2, user_pb2, user_service_pb2
from tests import stacks
from tests.gateway import until
from tests.outsider import enrolled
from tests.tokens import SigningKey, claims_of

PAY = "/tallystick.payment.v1.PaymentService/CreatePayment"
INT64_MAX = 2**63 - 1
# What a caller who only sends nonsense must never see: a defect, a hang, a backend that went away.
FAILURES = {
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.UNAVAILABLE,
}
WIDE = {
    f"TALLYSTICK_RATE_{name}": "1000000/1000000/1000"
    for name in ("PAYMENT", "READ", "WRITE", "PUBLIC", "OPERATOR", "TERMINAL")
}
PASSWORD = "a long enough phrase"
WATCH_CASES = "admin.v1.ReviewService/WatchCases"


class Refused(Exception):
    """How a call ended."""

    def __init__(self, error):
        super().__init__(error.code(), error.details())
        self.code = error.code()
        self.status = rpc_status.from_call(error)

    def details(self, kind):
        found = []
        for detail in self.status.details if self.status else ():
            message = kind()
            if detail.Unpack(message):
                found.append(message)
        return found

    @property
    def reason(self):
        (info,) = self.details(error_details_pb2.ErrorInfo)
        return f"{info.domain.removesuffix('.tallystick')}:{info.reason}"

    @property
    def fields(self):
        return {
            violation.field
            for bad in self.details(error_details_pb2.BadRequest)
            for violation in bad.field_violations
        }


class Issuer:
    """The key that the user service signs with: for tokens whose claims alone are wrong."""

    def __init__(self, endpoints, key_file):
        self._ring = KeyRing.read(key_file)
        keys = asyncio.run(_signing_keys(endpoints.services["user"].database_url))
        self._key = signing_key.signing(keys, now=datetime.now(UTC))
        self.key_id = self._key.key_id

    def sign(self, claims):
        return self._ring.sign(self._key, claims)


async def _signing_keys(database_url):
    engine = sql.create_engine(database_url)
    try:
        async with sql.reading(engine) as connection:
            return await signing_keys.list_keys(connection)
    finally:
        await engine.dispose()


class Outside:
    """What somebody outside sees of a running stack."""

    def __init__(self, stack, channel, found, issuer):
        self.stack = stack
        self.issuer = issuer
        self.channel = channel
        self.payers = [SimpleNamespace(token=token, name=_subject(token)) for token in found.tokens]
        self.payer = self.payers[0]
        self.vendor, self.latitude, self.longitude = found.vendors[0]
        self.admin = self.sign_in(stack.endpoints.admin_user, stack.endpoints.admin_password)

    def call(self, path, request, token=None, metadata=()):
        """The answer's bytes.

        Raises:
            Refused: there was none.
        """
        content = request if isinstance(request, bytes) else request.SerializeToString()
        headers = list(metadata)
        if token:
            headers.append(("authorization", f"Bearer {token}"))
        # On the wire one message is a stream of one. Of a stream, the first message is enough.
        rpc = self.channel.unary_stream(path)(content, metadata=headers, timeout=10)
        try:
            return next(rpc)
        except grpc.RpcError as error:
            raise Refused(error) from None
        finally:
            rpc.cancel()

    def sign_in(self, username, password):
        request = auth_service_pb2.LoginRequest(username=username, password=password)
        answer = self.call("/tallystick.user.v1.AuthService/Login", request)
        session = auth_service_pb2.LoginResponse.FromString(answer).session
        return SimpleNamespace(token=session.access_token, name=session.user)

    def register(self, username, role):
        site = None
        if role == access_pb2.ROLE_VENDOR:
            site = user_pb2.Site(display_name="Shop", position=self.here())
        request = user_service_pb2.RegisterUserRequest(
            request_id=str(uuid4()),
            username=username,
            password=PASSWORD,
            display_name="Somebody",
            role=role,
            site=site,
        )
        self.call("/tallystick.user.v1.UserService/RegisterUser", request)
        return self.sign_in(username, PASSWORD)

    def approved(self, username, role):
        person = self.register(username, role)
        self._decide("Approve", person, active=True)
        return person

    def suspended(self, username, role):
        person = self.approved(username, role)
        self._decide("Suspend", person, active=False)
        until(lambda: self.is_revoked(person))
        return person

    def another_admin(self, username):
        request = user_service_pb2.CreateAdminRequest(
            request_id=str(uuid4()), username=username, password=PASSWORD, display_name="Operator"
        )
        self.call("/tallystick.user.v1.UserService/CreateAdmin", request, self.admin.token)
        return self.sign_in(username, PASSWORD)

    def _decide(self, verb, person, *, active):
        request = getattr(user_service_pb2, f"{verb}UserRequest")(name=person.name, reason="x")
        self.call(f"/tallystick.user.v1.UserService/{verb}User", request, self.admin.token)
        until(lambda: self.is_active(person) is active)

    def is_revoked(self, person):
        """The ledger knows that their token is worth nothing any more."""
        request = wallet_service_pb2.GetWalletRequest(name=f"{person.name}/wallets/{CURRENCY}")
        try:
            self.call("/tallystick.payment.v1.WalletService/GetWallet", request, person.token)
        except Refused as error:
            return error.reason == "access:TOKEN_REVOKED"
        return False

    def is_active(self, person):
        """The ledger lets them move money; None while it has not heard of them."""
        request = wallet_service_pb2.GetWalletRequest(name=f"{person.name}/wallets/{CURRENCY}")
        try:
            answer = self.call(
                "/tallystick.payment.v1.WalletService/GetWallet", request, self.admin.token
            )
        except Refused:
            return None
        return wallet_service_pb2.GetWalletResponse.FromString(answer).wallet.active

    def here(self):
        return position_pb2.Position(latitude=self.latitude, longitude=self.longitude)

    def a_payment(self, minor_units=1_00, currency=CURRENCY, **other):
        facts = {
            "request_id": str(uuid4()),
            "vendor": self.vendor,
            "amount": money_pb2.Money(minor_units=minor_units, currency_code=currency),
            "position": self.here(),
        }
        return pb.CreatePaymentRequest(**{**facts, **other})

    def books(self):
        """Every balance, and how many rows there are of what money leaves behind."""
        wallets = self._ledger(
            "SELECT wallet_id, online, offline, reserved, held FROM wallets"
            " WHERE online <> 0 OR offline <> 0 OR reserved <> 0 OR held <> 0 ORDER BY 1"
        )
        counts = [
            self._ledger(f"SELECT count(*) FROM {table}")  # noqa: S608 - names of ours
            for table in ("payments", "transfers", "requests", "payment_tasks")
        ]
        return wallets, counts

    def is_settled(self):
        """No payment waits for its outcome, nor for a check that was missed."""
        waiting = (payment_pb2.Payment.STATE_PENDING, payment_pb2.Payment.STATE_PROCESSING)
        query = f"SELECT count(*) FROM payments WHERE state IN {waiting}"  # noqa: S608 - numbers
        return self._ledger(query) == self._ledger("SELECT count(*) FROM payment_tasks") == [(0,)]

    def _ledger(self, query):
        url = self.stack.endpoints.services["payment"].database_url
        path = url.removeprefix("sqlite+aiosqlite:///")
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


def _subject(token):
    return jwt.decode(token, options={"verify_signature": False})["sub"]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    directory = tmp_path_factory.mktemp("abuse")
    stack = stacks.start(directory, environment=WIDE)
    try:
        at = stack.endpoints
        key_file = directory / "run" / "data" / "dev" / "key-encryption-key"
        found = asyncio.run(seed(at, key_file, payers=4, vendors=2))
        authority = Path(at.ca_file).read_bytes()
        credentials = grpc.ssl_channel_credentials(root_certificates=authority)
        with grpc.secure_channel(at.grpc, credentials) as channel:
            yield Outside(stack, channel, found, Issuer(at, key_file))
        assert stack.endpoints.processes == at.processes
        findings = asyncio.run(audit.audit_stack(at))
        assert [finding for finding in findings.values() if not finding.holds] == []
    finally:
        assert stack.stop() == 0


@pytest.fixture
def unchanged(outside):
    """Holds a test to having moved nothing."""
    before = outside.books()
    yield
    assert outside.books() == before


def a_name():
    return f"somebody-{uuid4().hex[:8]}"


def refusal_of(outside, path, content, token):
    """How a call was refused; None when it was answered."""
    try:
        outside.call(path, content, token)
    except Refused as error:
        return error
    return None


def refused(outside, path, request, token=None, metadata=()):
    with pytest.raises(Refused) as caught:
        outside.call(path, request, token, metadata)
    return caught.value


@pytest.mark.parametrize(
    ("minor_units", "currency", "reason", "fields"),
    [
        (1_00, "XTS", "payment:CURRENCY_UNSUPPORTED", set()),
        (1_00, "rupees", "access:FIELDS_INVALID", {"amount.currency_code"}),
        (0, CURRENCY, "access:FIELDS_INVALID", {"amount"}),
        (-1, CURRENCY, "access:FIELDS_INVALID", {"amount"}),
        (-INT64_MAX, CURRENCY, "access:FIELDS_INVALID", {"amount"}),
        (10**13 + 1, CURRENCY, "payment:AMOUNT_OVER_LIMIT", set()),
        (INT64_MAX, CURRENCY, "payment:AMOUNT_OVER_LIMIT", set()),
    ],
)
def test_amounts_nobody_can_pay_are_refused(
    outside, unchanged, *, minor_units, currency, reason, fields
):
    error = refused(outside, PAY, outside.a_payment(minor_units, currency), outside.payer.token)

    assert error.code == StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.fields) == (reason, fields)


def test_an_amount_beyond_int64_on_the_wire_is_never_paid(outside, unchanged):
    # minor_units as a varint of 70 bits: parsers cut it to 64, which here leaves a negative amount.
    beyond = b"\x08" + b"\xff" * 9 + b"\x01" + b"\x12\x03INR"
    request = outside.a_payment()
    request.ClearField("amount")
    content = request.SerializeToString() + b"\x1a" + bytes([len(beyond)]) + beyond

    error = refused(outside, PAY, content, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "access:FIELDS_INVALID")


@pytest.mark.parametrize("minor_units", [0, -1, -(2**63), None])
@pytest.mark.parametrize("move", ["TopUp", "MoveBalance", "Payout"])
def test_no_wallet_moves_an_amount_that_is_not_above_zero(outside, unchanged, *, move, minor_units):
    request = getattr(wallet_service_pb2, f"{move}Request")(
        request_id=str(uuid4()), wallet=f"{outside.payer.name}/wallets/{CURRENCY}"
    )
    if move == "MoveBalance":
        request.direction = request.DIRECTION_TO_OFFLINE
    else:
        request.reference = "made up"
    if minor_units is not None:
        amount = money_pb2.Money(minor_units=minor_units, currency_code=CURRENCY)
        request.amount.CopyFrom(amount)
    person = outside.admin if move == "TopUp" else outside.payer

    error = refused(outside, f"/tallystick.payment.v1.WalletService/{move}", request, person.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "access:FIELDS_INVALID")
    assert error.fields == {"amount"}


def test_nobody_pays_themselves(outside, unchanged):
    request = outside.a_payment(vendor=outside.payer.name)

    error = refused(outside, PAY, request, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "payment:SELF_PAYMENT")


def test_a_payer_who_is_not_approved_pays_nobody(outside, unchanged):
    payer = outside.register(a_name(), access_pb2.ROLE_USER)

    error = refused(outside, PAY, outside.a_payment(), payer.token)

    assert error.code == StatusCode.FAILED_PRECONDITION
    assert error.reason == "payment:PAYER_NOT_ACTIVE"


def test_a_suspended_payer_pays_nobody_not_even_with_a_token_of_later(outside, unchanged):
    payer = outside.suspended(a_name(), access_pb2.ROLE_USER)
    later = outside.issuer.sign(claims_of("USER", subject=payer.name, iat_us=2**53))

    with_the_old = refused(outside, PAY, outside.a_payment(), payer.token)
    with_a_later = refused(outside, PAY, outside.a_payment(), later)

    assert with_the_old.code == StatusCode.UNAUTHENTICATED
    assert with_the_old.reason == "access:TOKEN_REVOKED"
    assert with_a_later.code == StatusCode.FAILED_PRECONDITION
    assert with_a_later.reason == "payment:PAYER_NOT_ACTIVE"


@pytest.mark.parametrize("how", ["register", "suspended"])
def test_a_vendor_who_is_not_approved_or_is_suspended_is_not_paid(outside, unchanged, how):
    vendor = getattr(outside, how)(a_name(), access_pb2.ROLE_VENDOR)

    error = refused(outside, PAY, outside.a_payment(vendor=vendor.name), outside.payer.token)

    assert error.code == StatusCode.FAILED_PRECONDITION
    assert error.reason == "payment:VENDOR_NOT_ACTIVE"


def test_a_vendor_who_does_not_exist_is_not_paid(outside, unchanged):
    request = outside.a_payment(vendor=f"users/{uuid4()}")

    error = refused(outside, PAY, request, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.NOT_FOUND, "payment:VENDOR_NOT_FOUND")


def test_a_request_id_with_another_body_is_refused_and_the_first_stands(outside):
    untouched = outside.books()
    first = outside.a_payment(5_00)
    outside.call(PAY, first, outside.payer.token)
    before = outside.books()
    assert before != untouched  # or the books would show nothing, in any test
    other = pb.CreatePaymentRequest()
    other.CopyFrom(first)
    other.amount.minor_units = 6_00

    error = refused(outside, PAY, other, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.ALREADY_EXISTS, "payment:REQUEST_ID_REUSED")
    assert outside.books() == before


def signed(key, key_id, claims):
    return jwt.encode(claims, key, "ES256", headers={"kid": key_id})


@pytest.mark.parametrize(
    "forge",
    [
        lambda _, claims: SigningKey().sign(claims),
        lambda issuer, claims: signed(SigningKey().private, issuer.key_id, claims),
        lambda issuer, claims: jwt.encode(claims, None, "none", headers={"kid": issuer.key_id}),
        lambda issuer, claims: jwt.encode(
            claims, "k" * 32, "HS256", headers={"kid": issuer.key_id}
        ),
        lambda issuer, claims: issuer.sign(claims).rpartition(".")[0] + ".",
        lambda _, __: "not.a.token",
        lambda _, __: "",
    ],
    ids=[
        "unknown kid",
        "known kid, another key",
        "alg none",
        "alg HS256",
        "signature cut off",
        "no token at all",
        "nothing",
    ],
)
def test_a_token_that_was_not_issued_opens_nothing(outside, unchanged, forge):
    token = forge(outside.issuer, claims_of("USER", subject=outside.payer.name))

    error = refused(outside, PAY, outside.a_payment(), token)

    assert (error.code, error.reason) == (StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED")


# Signed with the platform's own key: what is wrong is what they say, not who signed.
@pytest.mark.parametrize(
    ("wrong", "code", "reason"),
    [
        ({"lives": -60}, StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED"),
        ({"exp": None}, StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED"),
        ({"iss": "https://another"}, StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED"),
        ({"aud": "another"}, StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED"),
        ({"aud": None}, StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED"),
        ({"roles": []}, StatusCode.PERMISSION_DENIED, "access:CALLER_NOT_ALLOWED"),
        ({"roles": ["user"]}, StatusCode.PERMISSION_DENIED, "access:CALLER_NOT_ALLOWED"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_signed_token_that_says_the_wrong_thing_opens_nothing(
    outside, unchanged, *, wrong, code, reason
):
    claims = claims_of("USER", **{"subject": outside.payer.name, **wrong})
    token = outside.issuer.sign({key: value for key, value in claims.items() if value is not None})

    error = refused(outside, PAY, outside.a_payment(), token)

    assert (error.code, error.reason) == (code, reason)


@pytest.mark.parametrize("audience", ["another", ["another"], ""])
def test_a_token_for_another_audience_pays_nobody(outside, unchanged, audience):
    token = outside.issuer.sign(claims_of("USER", subject=outside.payer.name, aud=audience))

    error = refused(outside, PAY, outside.a_payment(), token)

    assert (error.code, error.reason) in {
        (StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED"),
        (StatusCode.PERMISSION_DENIED, "access:CALLER_NOT_ALLOWED"),
    }


def test_a_role_written_into_an_issued_token_breaks_its_signature(outside, unchanged):
    head, _, signature = outside.payer.token.split(".")
    stronger = claims_of("ADMIN", subject=outside.payer.name)
    body = jwt.encode(stronger, None, "none").split(".")[1]

    error = refused(outside, PAY, outside.a_payment(), f"{head}.{body}.{signature}")

    assert (error.code, error.reason) == (StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED")


@pytest.mark.parametrize(
    "header", ["x-jwt-payload", "x-user-id", "x-user-roles", "x-forwarded-client-cert"]
)
def test_an_identity_a_client_claims_in_a_header_counts_for_nothing(outside, unchanged, header):
    payload = jwt.utils.base64url_encode(
        f'{{"sub":"{outside.payer.name}","roles":["ADMIN"],"iat_us":9}}'.encode()
    ).decode()
    claimed = {
        "x-jwt-payload": payload,
        "x-user-id": outside.payer.name,
        "x-user-roles": "ADMIN",
    }.get(header, "URI=spiffe://tallystick/admin")
    top_up = wallet_service_pb2.TopUpRequest(
        request_id=str(uuid4()),
        wallet=f"{outside.payer.name}/wallets/{CURRENCY}",
        amount=money_pb2.Money(minor_units=1, currency_code=CURRENCY),
        reference="made up",
    )
    path = "/tallystick.payment.v1.WalletService/TopUp"

    nobody = refused(outside, path, top_up, metadata=[(header, claimed)])
    somebody = refused(outside, path, top_up, outside.payer.token, metadata=[(header, claimed)])

    assert (nobody.code, nobody.reason) == (
        StatusCode.UNAUTHENTICATED,
        "access:UNAUTHENTICATED",
    )
    assert (somebody.code, somebody.reason) == (
        StatusCode.PERMISSION_DENIED,
        "access:CALLER_NOT_ALLOWED",
    )


def test_every_missing_field_is_named(outside, unchanged):
    error = refused(outside, PAY, pb.CreatePaymentRequest(), outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "access:FIELDS_INVALID")
    assert error.fields == {"request_id", "vendor", "amount"}


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (b"\xff" * 40, StatusCode.INVALID_ARGUMENT, "access:FIELDS_INVALID"),
        (b"\x0a\xff\xff\xff\xff\x0f", StatusCode.INVALID_ARGUMENT, "access:FIELDS_INVALID"),
        (b"\x0a\x02\xc3\x28", StatusCode.INVALID_ARGUMENT, "access:FIELDS_INVALID"),
        (
            b"\x32" + b"\x80\x80\x80\x03" + b"x" * (6 << 20),
            StatusCode.RESOURCE_EXHAUSTED,
            "gateway:MESSAGE_TOO_LARGE",
        ),
    ],
    ids=["garbage", "a length beyond the end", "no UTF-8", "six megabytes"],
)
def test_bytes_that_are_no_request_are_refused(outside, unchanged, *, content, code, reason):
    error = refused(outside, PAY, content, outside.payer.token)

    assert (error.code, error.reason) == (code, reason)


def test_a_payment_cut_off_anywhere_is_never_paid(outside, unchanged):
    # Up to the amount, its last field that must be there: what ends behind that is a whole payment.
    whole = outside.a_payment()
    whole.ClearField("position")
    content = whole.SerializeToString()

    for length in range(len(content)):
        error = refused(outside, PAY, content[:length], outside.payer.token)

        assert error.code == StatusCode.INVALID_ARGUMENT, length
        assert error.reason == "access:FIELDS_INVALID", length


@pytest.mark.parametrize(
    "path",
    [
        "/tallystick.payment.v1.PaymentService/PrintMoney",
        "/tallystick.bank.v1.BankService/CreatePayment",
        "/tallystick.payment.v1.SettlementService/ResolveHold",
        "/tallystick.fraud.v1.FraudService/AssessPayments",
        "/tallystick.user.v1.PartyService/BatchGetParties",
        "/tallystick.user.v1.AuthService/ListRevocations",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/tallystick.payment.v1.PaymentService/../SettlementService/ResolveHold",
    ],
)
def test_what_is_not_for_outside_is_not_there(outside, unchanged, path):
    for token in (None, outside.payer.token, outside.admin.token):
        error = refused(outside, path, b"", token)

        assert error.code == StatusCode.UNIMPLEMENTED
        assert error.reason == "gateway:METHOD_UNKNOWN"


@pytest.mark.parametrize("token", ["x", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "é"])
def test_a_page_token_nobody_gave_is_refused(outside, unchanged, token):
    request = pb.ListPaymentsRequest(
        parent=outside.payer.name, currency_code=CURRENCY, page_token=token
    )

    path = "/tallystick.payment.v1.PaymentService/ListPayments"
    error = refused(outside, path, request, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "access:PAGE_TOKEN_INVALID")


def test_a_page_token_of_another_list_is_refused(outside, unchanged):
    path = "/tallystick.user.v1.UserService/ListUsers"
    request = user_service_pb2.ListUsersRequest(page_size=1)
    answer = outside.call(path, request, outside.admin.token)
    page = user_service_pb2.ListUsersResponse.FromString(answer)
    assert page.next_page_token
    request.role = access_pb2.ROLE_USER
    request.page_token = page.next_page_token

    error = refused(outside, path, request, outside.admin.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "access:PAGE_TOKEN_INVALID")


@pytest.mark.parametrize("cursor", ["x", "1-1", "-", "99999999999999-0", "9" * 40 + "-0"])
@pytest.mark.parametrize("watch", ["payment.v1.PaymentService/WatchPayments", WATCH_CASES])
def test_a_cursor_nobody_gave_is_refused(outside, unchanged, watch, cursor):
    request = pb.WatchPaymentsRequest(cursor=cursor)  # WatchCasesRequest is the same on the wire

    error = refused(outside, f"/tallystick.{watch}", request, outside.admin.token)

    assert (error.code, error.reason) == (StatusCode.OUT_OF_RANGE, "access:CURSOR_EXPIRED")


# What may pass, and what must not.
VALUES = {
    FieldDescriptor.TYPE_BOOL: ([False, True], [True]),
    FieldDescriptor.TYPE_INT32: ([0, 1, 50, 200], [201, -1, 2**31 - 1, -(2**31)]),
    FieldDescriptor.TYPE_INT64: (
        [1, 1_00, 10**13, 10**13 + 1, INT64_MAX],
        [0, -1, -(2**63)],
    ),
    FieldDescriptor.TYPE_BYTES: ([b"", bytes(32), bytes(range(64))], [b"x" * 5_000]),
    FieldDescriptor.TYPE_DOUBLE: (
        [12.97, 77.59, 0.0, -0.0, 5e-324],
        [1e308, -180.1, float("inf"), float("nan")],
    ),
}


class Noise:
    """Messages that look as the contract wants them, made of what a deployment knows and of what no one should send.

    Args:
        seed: The same one sends the same.
        names: Resource names and other strings that mean something to the services.
    """

    def __init__(self, seed, names):
        self._random = random.Random(seed)
        self._names = names

    def content(self):
        """Bytes of no message in particular; some start as one."""
        content = self._random.randbytes(self._random.choice([0, 1, 2, 7, 40, 300]))
        if self._random.random() < 0.3:  # a string where the first field is one
            content = b"\x0a\x24" + self._uuid().encode() + content
        return content

    def message(self, descriptor):
        made = message_factory.GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._random.random() < 0.05:
                continue
            if field.is_repeated:
                values = [self._value(field) for _ in range(self._random.choice([0, 1, 2, 11]))]
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    getattr(made, field.name).extend(values)
                else:
                    getattr(made, field.name)[:] = values
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                getattr(made, field.name).CopyFrom(self._value(field))
            else:
                setattr(made, field.name, self._value(field))
        return made

    def _value(self, field):
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            return self.message(field.message_type)
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._text(field)
        if field.type == FieldDescriptor.TYPE_ENUM:
            numbers = [value.number for value in field.enum_type.values]
            return self._mostly(numbers, [99, -1])
        good, bad = VALUES[field.type]
        return self._mostly(good, bad)

    def _text(self, field):
        """Mostly what the field's own rule lets pass."""
        rules = field.GetOptions().Extensions[validate_pb2.field].string
        if rules.uuid:
            good = [self._uuid()]
        elif field.name in {"page_token", "cursor", "site"}:
            good = [*[""] * len(self._names), *self._names]
        else:
            good = [
                name for name in self._names if not rules.pattern or re.search(rules.pattern, name)
            ]
            another = good[0] if good else f"codes/{self._uuid()}"
            good.append(re.sub("users/[0-9a-f-]{36}", f"users/{self._uuid()}", another))
        return self._mostly(good, ["", "\0", "x" * 5_000, "\u202e\U0001f4b8", "%s{0}' OR 1=1 --"])

    def _mostly(self, good, bad):
        return self._random.choice(good if self._random.random() < 0.92 else bad)

    def _uuid(self):
        return str(UUID(int=self._random.getrandbits(128), version=4))


OPEN = {
    rule_of(method).path: method
    for service in services()
    for method in service.methods
    if rule_of(method).at_gateway
}
EACH = 15


class Crowd:
    """One of each role, whom the noise may suspend, pay and sign out."""

    def __init__(self, outside):
        self.people = {
            "USER": outside.approved(a_name(), access_pb2.ROLE_USER),
            "VENDOR": outside.approved(a_name(), access_pb2.ROLE_VENDOR),
            "ADMIN": outside.another_admin(a_name()),
        }
        payer, vendor = self.people["USER"], self.people["VENDOR"]
        amount = money_pb2.Money(minor_units=10_000_00, currency_code=CURRENCY)
        top_up = wallet_service_pb2.TopUpRequest(
            request_id=str(uuid4()),
            wallet=f"{payer.name}/wallets/{CURRENCY}",
            amount=amount,
            reference="cash",
        )
        outside.call("/tallystick.payment.v1.WalletService/TopUp", top_up, outside.admin.token)
        paid = outside.call(PAY, outside.a_payment(vendor=vendor.name), payer.token)
        payment = pb.CreatePaymentResponse.FromString(paid).payment
        request = site_service_pb2.ListSitesRequest(parent=vendor.name)
        path = "/tallystick.user.v1.SiteService/ListSites"
        sites = site_service_pb2.ListSitesResponse.FromString(
            outside.call(path, request, vendor.token)
        ).sites
        terminal = self.people["TERMINAL"] = enrolled(outside, vendor, sites[0].name)
        self.names = [
            terminal.name,
            f"batches/{uuid4()}",
            payer.name,
            vendor.name,
            f"{payer.name}/wallets/{CURRENCY}",
            f"{vendor.name}/wallets/{CURRENCY}",
            f"{vendor.name}/wallets/XTS",
            payment.name,
            sites[0].name,
            f"cases/{uuid4()}",
            CURRENCY,
            "XTS",
            a_name(),
            "0-0",
            PASSWORD,
        ]


@pytest.fixture(scope="module")
def shared_crowd(outside):
    return Crowd(outside)


@pytest.fixture
def crowd(request, outside, path):
    """Who the noise comes from; what may sign them out gets a crowd of its own, or the rest would test nothing."""
    if path.rpartition("/")[2] in {"SuspendUser", "ChangePassword", "RevokeTerminal"}:
        return Crowd(outside)
    return request.getfixturevalue("shared_crowd")


@pytest.mark.parametrize("path", OPEN, ids=lambda path: path.rpartition("/")[2])
def test_nothing_that_can_be_sent_makes_a_service_fail(outside, crowd, path):
    noise = Noise(path, crowd.names)
    before = dict(outside.stack.endpoints.processes)

    for role, person in crowd.people.items():
        messages = [noise.message(OPEN[path].input_type) for _ in range(EACH)]
        contents = [message.SerializeToString() for message in messages]
        for content in [*contents, *(noise.content() for _ in range(EACH))]:
            error = refusal_of(outside, path, content, person.token)
            if error is not None:
                assert error.code not in FAILURES, (role, content, error)
                assert error.reason, (role, content)

    assert outside.stack.endpoints.processes == before
    # Payments that nobody waited for end here, and not in the middle of the next test.
    until(outside.is_settled)
