"""Bad input through the real Envoy into the real services: a precise answer, and nothing changed."""

import asyncio
import random
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import grpc
import jwt
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc_status import rpc_status

from bench.seed import CURRENCY, seed
from cli import audit
from services.gateway.contract import services
from services.rpc.contract import rules
from tallystick.access.v1 import access_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.payment.v1 import wallet_service_pb2
from tallystick.type.v1 import money_pb2, position_pb2
from tallystick.user.v1 import auth_service_pb2, user_pb2, user_service_pb2
from tests import stacks
from tests.gateway import until
from tests.tokens import SigningKey, claims_of

PAY = "/tallystick.payment.v1.PaymentService/CreatePayment"
INT64_MAX = 2**63 - 1
FAILURES = {StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DEADLINE_EXCEEDED}
WIDE = {
    f"TALLYSTICK_RATE_{name}": "1000000/1000000/1000"
    for name in ("PAYMENT", "READ", "WRITE", "PUBLIC", "OPERATOR")
}
PASSWORD = "a long enough phrase"


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


class Outside:
    """What somebody outside sees of a running stack."""

    def __init__(self, stack, channel, found):
        self.stack = stack
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
        try:
            return self.channel.unary_unary(path)(content, metadata=headers, timeout=10)
        except grpc.RpcError as error:
            raise Refused(error) from None

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

    def suspended(self, username, role):
        person = self.register(username, role)
        for verb, active in (("Approve", True), ("Suspend", False)):
            request = getattr(user_service_pb2, f"{verb}UserRequest")(name=person.name, reason="x")
            self.call(f"/tallystick.user.v1.UserService/{verb}User", request, self.admin.token)
            until(lambda active=active: self.is_active(person) is active)
        return person

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
        url = self.stack.endpoints.services["payment"].database_url
        path = url.removeprefix("sqlite+aiosqlite:///")
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            wallets = connection.execute(
                "SELECT wallet_id, online, offline, reserved, held FROM wallets"
                " WHERE online + offline + reserved + held <> 0 ORDER BY 1"
            ).fetchall()
            counts = [
                connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
                for table in ("payments", "transfers", "requests")
            ]
            return wallets, counts
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
            yield Outside(stack, channel, found)
    finally:
        assert stack.stop() == 0


@pytest.fixture
def unchanged(outside):
    """Holds a test to having moved nothing."""
    before = outside.books()
    yield
    assert outside.books() == before


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


def test_nobody_pays_themselves(outside, unchanged):
    request = outside.a_payment(vendor=outside.payer.name)

    error = refused(outside, PAY, request, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "payment:SELF_PAYMENT")


@pytest.mark.parametrize("how", ["register", "suspended"])
def test_who_is_not_approved_or_is_suspended_neither_pays_nor_is_paid(outside, unchanged, how):
    name = f"{how}-{uuid4().hex[:8]}"
    payer = getattr(outside, how)(f"payer-{name}", access_pb2.ROLE_USER)
    vendor = getattr(outside, how)(f"vendor-{name}", access_pb2.ROLE_VENDOR)

    pays = refused(outside, PAY, outside.a_payment(), payer.token)
    is_paid = refused(outside, PAY, outside.a_payment(vendor=vendor.name), outside.payer.token)

    assert (pays.code, pays.reason) in {
        (StatusCode.FAILED_PRECONDITION, "payment:PAYER_NOT_ACTIVE"),
        (StatusCode.UNAUTHENTICATED, "access:TOKEN_REVOKED"),
    }
    assert (is_paid.code, is_paid.reason) == (
        StatusCode.FAILED_PRECONDITION,
        "payment:VENDOR_NOT_ACTIVE",
    )


def test_a_vendor_who_does_not_exist_is_not_paid(outside, unchanged):
    request = outside.a_payment(vendor=f"users/{uuid4()}")

    error = refused(outside, PAY, request, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.NOT_FOUND, "payment:VENDOR_NOT_FOUND")


def test_a_request_id_with_another_body_is_refused_and_the_first_stands(outside):
    first = outside.a_payment(5_00)
    outside.call(PAY, first, outside.payer.token)
    before = outside.books()
    other = pb.CreatePaymentRequest()
    other.CopyFrom(first)
    other.amount.minor_units = 6_00

    error = refused(outside, PAY, other, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.ALREADY_EXISTS, "payment:REQUEST_ID_REUSED")
    assert outside.books() == before


def unsigned(claims):
    return jwt.encode(claims, None, "none")


@pytest.mark.parametrize(
    "forge",
    [
        lambda name: SigningKey().sign(claims_of("USER", subject=name)),
        lambda name: unsigned(claims_of("USER", subject=name)),
        lambda _: "not.a.token",
        lambda _: "",
    ],
    ids=["another key", "no signature", "no token at all", "nothing"],
)
def test_a_token_that_was_not_issued_opens_nothing(outside, unchanged, forge):
    error = refused(outside, PAY, outside.a_payment(), forge(outside.payer.name))

    assert (error.code, error.reason) == (StatusCode.UNAUTHENTICATED, "access:UNAUTHENTICATED")


@pytest.mark.parametrize(
    ("claims", "codes"),
    [
        ({"exp": 1}, {StatusCode.UNAUTHENTICATED}),
        ({"aud": "another"}, {StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED}),
        ({"iss": "https://another"}, {StatusCode.UNAUTHENTICATED}),
    ],
)
def test_a_token_changed_after_it_was_issued_opens_nothing(outside, unchanged, claims, codes):
    head, _, signature = outside.payer.token.split(".")
    changed = jwt.decode(outside.payer.token, options={"verify_signature": False}) | claims
    body = jwt.utils.base64url_encode(str(changed).replace("'", '"').encode()).decode()

    error = refused(outside, PAY, outside.a_payment(), f"{head}.{body}.{signature}")

    assert error.code in codes


@pytest.mark.parametrize("header", ["x-jwt-payload", "x-user-id", "x-forwarded-client-cert"])
def test_an_identity_a_client_claims_in_a_header_counts_for_nothing(outside, unchanged, header):
    payload = jwt.utils.base64url_encode(
        f'{{"sub":"{outside.payer.name}","roles":["ADMIN"],"iat_us":9}}'.encode()
    ).decode()
    claimed = {"x-jwt-payload": payload, "x-user-id": outside.payer.name}.get(
        header, "URI=spiffe://tallystick/admin"
    )
    top_up = wallet_service_pb2.TopUpRequest(
        request_id=str(uuid4()),
        wallet=f"{outside.payer.name}/wallets/{CURRENCY}",
        amount=money_pb2.Money(minor_units=1, currency_code=CURRENCY),
        reference="made up",
    )
    path = "/tallystick.payment.v1.WalletService/TopUp"

    nobody = refused(outside, path, top_up, metadata=[(header, claimed)])
    somebody = refused(outside, path, top_up, outside.payer.token, metadata=[(header, claimed)])

    assert nobody.code == StatusCode.UNAUTHENTICATED
    assert somebody.code == StatusCode.PERMISSION_DENIED


def test_every_missing_field_is_named(outside, unchanged):
    error = refused(outside, PAY, pb.CreatePaymentRequest(), outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "access:FIELDS_INVALID")
    assert error.fields == {"request_id", "vendor", "amount"}


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        (b"\xff" * 40, {StatusCode.INVALID_ARGUMENT}),
        (b"\x0a\xff\xff\xff\xff\x0f", {StatusCode.INVALID_ARGUMENT}),
        (b"\x0a\x02\xc3\x28", {StatusCode.INVALID_ARGUMENT}),
        (b"\x32" + b"\x80\x80\x80\x03" + b"x" * (6 << 20), {StatusCode.RESOURCE_EXHAUSTED}),
    ],
    ids=["garbage", "truncated", "no UTF-8", "six megabytes"],
)
def test_bytes_that_are_no_request_are_refused(outside, unchanged, content, codes):
    error = refused(outside, PAY, content, outside.payer.token)

    assert error.code in codes
    assert len(error.details(error_details_pb2.ErrorInfo)) == 1


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
        "/tallystick.payment.v1.PaymentService/../SettlementService/ResolveHold",
    ],
)
def test_what_is_not_for_outside_is_not_there(outside, unchanged, path):
    for token in (None, outside.payer.token, outside.admin.token):
        assert refused(outside, path, b"", token).code == StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("token", ["x", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "é"])
def test_a_page_token_nobody_gave_is_refused(outside, unchanged, token):
    request = pb.ListPaymentsRequest(
        parent=outside.payer.name, currency_code=CURRENCY, page_token=token
    )

    path = "/tallystick.payment.v1.PaymentService/ListPayments"
    error = refused(outside, path, request, outside.payer.token)

    assert (error.code, error.reason) == (StatusCode.INVALID_ARGUMENT, "access:PAGE_TOKEN_INVALID")


@pytest.mark.parametrize("cursor", ["x", "1-1", "99999999999999999999999-0"])
def test_a_cursor_nobody_gave_is_refused(outside, unchanged, cursor):
    call = outside.channel.unary_stream("/tallystick.payment.v1.PaymentService/WatchPayments")
    request = pb.WatchPaymentsRequest(cursor=cursor).SerializeToString()
    headers = [("authorization", f"Bearer {outside.payer.token}")]

    with pytest.raises(grpc.RpcError) as caught:
        next(call(request, metadata=headers, timeout=10))

    error = Refused(caught.value)
    assert (error.code, error.reason) == (StatusCode.OUT_OF_RANGE, "access:CURSOR_EXPIRED")


def test_nothing_that_can_be_sent_makes_a_service_fail(outside):
    noise = random.Random(20261122)
    before = dict(outside.stack.endpoints.processes)
    tokens = [None, outside.payer.token, outside.admin.token]
    unary = [rule for rule in rules(services()) if rule.at_gateway and not rule.streams]
    assert len(unary) > 25
    skipped = {"RotateSigningKeys", "Logout"}

    for rule in unary:
        if rule.path.rpartition("/")[2] in skipped:
            continue
        for number in range(12):
            content = noise.randbytes(noise.choice([0, 1, 2, 7, 40, 300]))
            if number % 3 == 0:  # a string where the first field is one
                content = b"\x0a" + bytes([36]) + str(uuid4()).encode() + content
            code = StatusCode.OK
            try:
                outside.call(rule.path, content, tokens[number % len(tokens)])
            except Refused as error:
                code = error.code
            assert code not in FAILURES, (rule.path, content)

    assert outside.stack.endpoints.processes == before
    findings = asyncio.run(audit.audit_stack(outside.stack.endpoints))
    assert [finding for finding in findings.values() if not finding.holds] == []
