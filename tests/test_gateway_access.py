"""Who gets through the gateway: everything here is asked of the real Envoy."""

from __future__ import annotations

import base64
import json
import socket
import time

import grpc
import jwt
import pytest
from uuid_utils import uuid4

from services.gateway import contract
from services.rpc import identity
from services.rpc.contract import rules
from tallystick.access.v1 import access_pb2
from tests.gateway import ORIGIN, until
from tests.tokens import SigningKey, claims_of

CODE = grpc.StatusCode
# Takes an empty request, from USER, VENDOR and ADMIN, and answers with two messages.
WATCH_PAYMENTS = "/tallystick.payment.v1.PaymentService/WatchPayments"
# Takes an empty request, from TERMINAL.
GET_TRUST_BUNDLE = "/tallystick.offline.v1.TerminalSyncService/GetTrustBundle"
# Public, and takes an empty request.
GET_SIGNING_KEYS = "/tallystick.user.v1.AuthService/GetSigningKeys"
ROLES = [
    value.name.removeprefix("ROLE_")
    for value in access_pb2.Role.DESCRIPTOR.values
    if value.number != access_pb2.ROLE_UNSPECIFIED
]
EVERY_RPC = rules(contract.services())


def names(rule):
    return {access_pb2.Role.Name(role).removeprefix("ROLE_") for role in rule.roles}


@pytest.mark.parametrize("rule", EVERY_RPC, ids=lambda rule: rule.path.rpartition(".")[2])
def test_an_rpc_is_open_to_exactly_whom_its_contract_names(gateway, rule):
    anonymous = gateway.call(rule.path)
    by_role = {role: gateway.call(rule.path, token=gateway.token(role)) for role in ROLES}

    if not rule.at_gateway:
        answers = [anonymous, *by_role.values()]
        assert {answer.code for answer in answers} == {CODE.UNIMPLEMENTED}
        assert {answer.reason for answer in answers} == {("gateway.tallystick", "METHOD_UNKNOWN")}
        return
    if rule.public:
        assert anonymous.reached_the_service, anonymous
    else:
        assert anonymous.code is CODE.UNAUTHENTICATED
        assert anonymous.reason == ("access.tallystick", "UNAUTHENTICATED")
    for role, answer in by_role.items():
        if rule.public or role in names(rule):
            assert answer.reached_the_service, (role, answer)
        else:
            assert answer.code is CODE.PERMISSION_DENIED, (role, answer)
            assert answer.reason == ("access.tallystick", "CALLER_NOT_ALLOWED")
            assert rule.path in answer.message


def test_one_of_several_roles_is_enough(gateway):
    token = gateway.token("TERMINAL", "VENDOR")

    assert gateway.call(WATCH_PAYMENTS, token=token).code is CODE.OK


def test_a_token_without_roles_opens_nothing(gateway):
    assert gateway.call(WATCH_PAYMENTS, token=gateway.token()).code is CODE.PERMISSION_DENIED
    no_claim = claims_of("USER")
    del no_claim["roles"]
    assert (
        gateway.call(WATCH_PAYMENTS, token=gateway.key.sign(no_claim)).code
        is CODE.PERMISSION_DENIED
    )


def unsigned(key):
    return jwt.encode(claims_of("ADMIN"), None, "none", headers={"kid": key.key_id})


def signed_with_the_public_key_as_a_secret(key):
    header = {"alg": "HS256", "typ": "JWT", "kid": key.key_id}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in (header, claims_of("ADMIN"))
    ]
    secret = json.dumps(key.public()).encode()
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        b".".join(parts), secret
    )
    parts.append(base64.urlsafe_b64encode(signature).rstrip(b"="))
    return b".".join(parts).decode()


def forged(key):
    other = SigningKey()
    other.key_id = key.key_id
    return other.sign(claims_of("ADMIN"))


def changed_afterwards(key):
    header, _, signature = key.sign(claims_of("USER")).split(".")
    claims = base64.urlsafe_b64encode(json.dumps(claims_of("ADMIN")).encode()).rstrip(b"=")
    return f"{header}.{claims.decode()}.{signature}"


def without(key, claim):
    claims = claims_of("ADMIN")
    del claims[claim]
    return key.sign(claims)


@pytest.mark.parametrize(
    "make",
    [
        lambda key: "garbage",
        lambda key: "a.b.c",
        lambda key: "",
        unsigned,
        signed_with_the_public_key_as_a_secret,
        forged,
        changed_afterwards,
        lambda key: SigningKey().sign(claims_of("ADMIN")),
        lambda key: key.sign(claims_of("ADMIN", lives=-60)),
        lambda key: key.sign(claims_of("ADMIN", nbf=int(time.time()) + 600)),
        lambda key: key.sign(claims_of("ADMIN", iss="https://elsewhere")),
        lambda key: without(key, "exp"),
        lambda key: without(key, "iss"),
    ],
    ids=[
        "garbage",
        "not base64",
        "empty",
        "alg none",
        "alg HS256",
        "forged",
        "claims changed",
        "unknown key",
        "expired",
        "not valid yet",
        "other issuer",
        "no expiry",
        "no issuer",
    ],
)
def test_a_bad_token_is_no_identity(gateway, make):
    answer = gateway.call(WATCH_PAYMENTS, token=make(gateway.key))

    assert answer.code is CODE.UNAUTHENTICATED
    assert answer.reason == ("access.tallystick", "UNAUTHENTICATED")


@pytest.mark.parametrize("audience", ["elsewhere", None])
def test_a_token_for_another_audience_is_refused(gateway, audience):
    claims = claims_of("ADMIN", aud=audience)
    if audience is None:
        del claims["aud"]

    answer = gateway.call(WATCH_PAYMENTS, token=gateway.key.sign(claims))

    assert answer.code is CODE.UNAUTHENTICATED
    assert answer.reason == ("access.tallystick", "UNAUTHENTICATED")


def test_a_token_in_the_address_is_not_looked_at(gateway):
    token = gateway.token("USER")
    with gateway.web() as browser:
        answer = browser.call(f"{WATCH_PAYMENTS}?access_token={token}")

    assert answer.code is CODE.UNAUTHENTICATED


def test_a_public_rpc_does_not_mind_a_bad_token(gateway):
    assert gateway.call(GET_SIGNING_KEYS, token="garbage").code is CODE.OK


def last_call(gateway, service, path):
    calls = [call for each in gateway.backends[service] for call in each.calls]
    return next(call for call in reversed(calls) if call.path == path)


def test_the_service_learns_who_calls_from_the_token(gateway):
    claims = claims_of("USER", "VENDOR")

    assert gateway.call(WATCH_PAYMENTS, token=gateway.key.sign(claims)).code is CODE.OK

    calls = [call for each in gateway.backends["payment"] for call in each.calls]
    call = next(call for call in calls if call.caller.subject == claims["sub"])
    assert call.caller.roles == {access_pb2.ROLE_USER, access_pb2.ROLE_VENDOR}
    assert call.caller.token_issued_micros == claims["iat_us"]


def test_a_terminals_token_makes_a_terminal_of_its_vendor(gateway):
    vendor = f"users/{uuid4()}"
    claims = claims_of("TERMINAL", subject=f"{vendor}/terminals/{uuid4()}")
    del claims["sid"]  # A terminal has no session.

    answer = gateway.call(GET_TRUST_BUNDLE, token=gateway.key.sign(claims))

    assert answer.code is CODE.OK, answer
    caller = last_call(gateway, "offline", GET_TRUST_BUNDLE).caller
    assert caller.subject == claims["sub"]
    assert (caller.is_terminal, caller.is_admin) == (True, False)
    assert str(caller.user_id) == vendor.removeprefix("users/")


SPOOFED = [
    ("x-user-id", "users/0"),
    ("x-user-role", "ADMIN"),
    ("x-forwarded-client-cert", "URI=spiffe://tallystick/payment"),
    ("x-forwarded-for", "203.0.113.7"),
    ("x-envoy-max-retries", "9"),
    ("x-envoy-retry-grpc-on", "unavailable"),
    ("x-envoy-upstream-rq-timeout-ms", "1"),
    ("traceparent", "00-11111111111111111111111111111111-2222222222222222-01"),
    ("tracestate", "a=b"),
    ("baggage", "a=b"),
    ("x-request-id", "11111111-1111-1111-1111-111111111111"),
]


def spoofed_payload():
    claims = json.dumps(claims_of("ADMIN")).encode()
    return ("x-jwt-payload", base64.urlsafe_b64encode(claims).rstrip(b"=").decode())


def test_nobody_brings_an_identity_along_to_a_public_rpc(gateway):
    payload = spoofed_payload()

    answer = gateway.call(GET_SIGNING_KEYS, metadata=[payload, *SPOOFED])

    assert answer.code is CODE.OK
    call = last_call(gateway, "user", GET_SIGNING_KEYS)
    assert call.caller == identity.ANYBODY
    arrived = {
        name: value for name, value in call.metadata.items() if value == dict(SPOOFED).get(name)
    }
    assert arrived == {}
    assert "x-jwt-payload" not in call.metadata
    assert "x-envoy-internal" not in call.metadata


def test_a_token_wins_over_an_identity_brought_along(gateway):
    subject = claims_of("USER")["sub"]

    gateway.call(
        WATCH_PAYMENTS,
        token=gateway.token("USER", subject=subject),
        metadata=[spoofed_payload(), *SPOOFED],
    )

    calls = [call for each in gateway.backends["payment"] for call in each.calls]
    call = next(call for call in calls if call.caller.subject == subject)
    assert call.caller.roles == {access_pb2.ROLE_USER}
    assert "authorization" not in call.metadata
    assert not call.metadata["traceparent"].endswith("-01")


def test_a_token_goes_no_further_than_the_gateway(gateway):
    gateway.call(GET_SIGNING_KEYS, token=gateway.token("USER"))

    assert "authorization" not in last_call(gateway, "user", GET_SIGNING_KEYS).metadata


@pytest.mark.parametrize("path", ["/", "/nothing", "/tallystick.payment.v1.PaymentService/Steal"])
def test_what_is_not_in_the_contract_is_unimplemented_with_and_without_a_token(gateway, path):
    with gateway.web() as browser:
        answers = [
            gateway.call(path),
            gateway.call(path, token=gateway.token("ADMIN")),
            gateway.call(path, token="garbage"),
            browser.call(path),
        ]

    assert {answer.code for answer in answers} == {CODE.UNIMPLEMENTED}
    assert {answer.reason for answer in answers} == {("gateway.tallystick", "METHOD_UNKNOWN")}


def test_names_that_strangers_make_up_leave_no_trace_in_the_statistics(gateway):
    gateway.call("/made.up.Service/Method")
    gateway.call(WATCH_PAYMENTS)

    assert "made" not in gateway.admin("/stats")
    assert gateway.call(WATCH_PAYMENTS, token=gateway.token("USER")).code is CODE.OK
    assert "tallystick_payment_v1_PaymentService.WatchPayments" in gateway.admin("/stats")


def test_reflection_and_health_stay_inside(gateway):
    for path in (
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ):
        assert gateway.call(path, token=gateway.token("ADMIN")).code is CODE.UNIMPLEMENTED


def test_who_speaks_neither_grpc_nor_grpc_web_gets_an_http_error(gateway):
    with gateway.web() as browser:
        assert browser.send("GET", "/")[0].status == 404
        assert browser.send("POST", WATCH_PAYMENTS)[0].status == 415


@pytest.mark.parametrize(
    "path",
    [
        "/tallystick.payment.v1.PaymentService/watchpayments",
        WATCH_PAYMENTS + "/",
        "/tallystick.payment.v1.PaymentService/../PaymentService/WatchPayments",
        "//tallystick.payment.v1.PaymentService/WatchPayments",
        "/tallystick.payment.v1.PaymentService%2FWatchPayments",
        "/tallystick.payment.v1.SettlementService/ResolveHold?x=/tallystick.user.v1.AuthService/Login",
    ],
)
def test_no_other_spelling_of_a_path_opens_a_door(gateway, path):
    answer = gateway.call(path)

    assert answer.code in {CODE.UNIMPLEMENTED, CODE.UNAUTHENTICATED, CODE.INVALID_ARGUMENT}
    assert answer.reason is not None


def test_a_browser_may_ask_first_from_an_origin_that_is_allowed(gateway):
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    with gateway.web() as browser:
        response, _ = browser.send("OPTIONS", WATCH_PAYMENTS, asked)

    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in response.headers["access-control-allow-headers"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://shop.example.evil.example", "null"]
)
def test_a_browser_is_told_nothing_from_any_other_origin(gateway, origin):
    asked = {"origin": origin, "access-control-request-method": "POST"}
    with gateway.web() as browser:
        preflight, _ = browser.send("OPTIONS", WATCH_PAYMENTS, asked)
        answer = browser.call(
            WATCH_PAYMENTS, token=gateway.token("USER"), headers={"origin": origin}
        )

    assert preflight.status == 403
    assert "access-control-allow-origin" not in preflight.headers
    assert "access-control-allow-origin" not in answer.headers


def test_a_browser_reads_a_stream(gateway):
    with gateway.web() as browser:
        answer = browser.call(WATCH_PAYMENTS, token=gateway.token("USER"))

    assert answer.code is CODE.OK
    assert len(answer.messages) == 2
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_a_browser_reads_the_details_of_a_refusal(gateway):
    with gateway.web() as browser:
        nobody = browser.call(WATCH_PAYMENTS)
        wrong = browser.call(WATCH_PAYMENTS, token=gateway.token("TERMINAL"))
        invalid = browser.call(
            "/tallystick.payment.v1.PaymentService/ListPayments", token=gateway.token("USER")
        )

    assert (nobody.code, nobody.reason) == (
        CODE.UNAUTHENTICATED,
        ("access.tallystick", "UNAUTHENTICATED"),
    )
    assert (wrong.code, wrong.reason) == (
        CODE.PERMISSION_DENIED,
        ("access.tallystick", "CALLER_NOT_ALLOWED"),
    )
    assert (invalid.code, invalid.reason) == (
        CODE.INVALID_ARGUMENT,
        ("access.tallystick", "FIELDS_INVALID"),
    )
    assert "grpc-status-details-bin" in nobody.headers["access-control-expose-headers"]


def test_a_message_larger_than_services_take_is_refused_at_the_door(gateway):
    large = b"x" * (5 * 1024 * 1024)
    with gateway.web() as browser:
        answers = [
            gateway.call(WATCH_PAYMENTS, large, token=gateway.token("USER")),
            browser.call(WATCH_PAYMENTS, large, token=gateway.token("USER")),
        ]

    assert {answer.code for answer in answers} == {CODE.RESOURCE_EXHAUSTED}
    assert {answer.reason for answer in answers} == {("gateway.tallystick", "MESSAGE_TOO_LARGE")}


def test_the_largest_message_that_services_take_gets_through(gateway):
    # An unknown field of bytes: tag and length take 6 of 4 MiB.
    content = 4 * 1024 * 1024 - 6
    length = bytes(
        [
            content & 0x7F | 0x80,
            content >> 7 & 0x7F | 0x80,
            content >> 14 & 0x7F | 0x80,
            content >> 21,
        ]
    )
    message = b"\xfa\x01" + length + b"x" * content

    answer = gateway.call(WATCH_PAYMENTS, message, token=gateway.token("USER"))

    assert len(message) == 4 * 1024 * 1024
    assert answer.code is CODE.OK


def test_garbage_for_a_message_is_the_callers_fault(gateway):
    answer = gateway.call(WATCH_PAYMENTS, b"\xff\xff\xff", token=gateway.token("USER"))

    assert answer.code is CODE.INVALID_ARGUMENT
    assert answer.reason == ("access.tallystick", "FIELDS_INVALID")


def test_garbage_for_a_protocol_harms_nobody_else(gateway):
    with gateway.web() as browser:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\0\xff" * 1000)
            while plain.recv(4096):
                pass
        response, _ = browser.send("BREW", "/", {"x_y": "1"})
        assert response.status == 400

    assert gateway.call(WATCH_PAYMENTS, token=gateway.token("USER")).code is CODE.OK


def test_a_header_name_with_an_underscore_ends_that_call_only(gateway):
    refused = gateway.call(WATCH_PAYMENTS, token=gateway.token("USER"), metadata=[("x_jwt", "1")])

    # Envoy resets the stream: over HTTP/2 there is no telling why.
    assert refused.code is CODE.INTERNAL
    assert gateway.call(WATCH_PAYMENTS, token=gateway.token("USER")).code is CODE.OK


def test_every_call_leaves_a_line_that_says_who_did_what(gateway):
    claims = claims_of("USER")
    gateway.call(WATCH_PAYMENTS, token=gateway.key.sign(claims))
    with gateway.web() as browser:
        browser.call(WATCH_PAYMENTS + "?secret=1", token=gateway.key.sign(claims))
        browser.call(
            "/tallystick.payment.v1.PaymentService/ListPayments", token=gateway.key.sign(claims)
        )

    def lines():
        mine = [line for line in gateway.access_log() if line["user"] == claims["sub"]]
        return mine if len(mine) == 3 else None

    native, stream, refused = until(lines)
    assert native["method"] == stream["method"] == WATCH_PAYMENTS
    assert native["roles"] == ["USER"]
    assert (native["grpc_status"], native["grpc_code"], native["web"]) == ("OK", 0, False)
    assert (refused["grpc_code"], refused["web"]) == ("3", True)
    assert len(native["trace_id"]) == 32
    assert native["upstream"] in {each.address for each in gateway.backends["payment"]}
    calls = [call for each in gateway.backends["payment"] for call in each.calls]
    assert native["trace_id"] in {call.metadata["traceparent"][3:35] for call in calls}
