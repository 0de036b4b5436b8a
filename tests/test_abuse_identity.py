"""Forged, stolen and made-up identities through the real Envoy: nothing opens, nothing changes."""

import hmac
import json
import time

import jwt
import pytest
from grpc import StatusCode
from uuid_utils import uuid4

from services.gateway.contract import services
from services.rpc.contract import rules
from tallystick.access.v1 import access_pb2
from tallystick.payment.v1 import wallet_service_pb2
from tallystick.user.v1 import auth_service_pb2, user_pb2, user_service_pb2
from tests.outsider import AUTH, LOGIN, PASSWORD, PAY, USERS, WALLETS, money, wallet_of, with_claims
from tests.tokens import SigningKey, claims_of, key_set

NOBODY = (StatusCode.UNAUTHENTICATED, ("access.tallystick", "UNAUTHENTICATED"))
NOT_YOU = (StatusCode.PERMISSION_DENIED, ("access.tallystick", "CALLER_NOT_ALLOWED"))


def said(answer):
    return answer.code, answer.reason


def public_key(outsider):
    """What everybody may read: the platform's own key, as JSON Web Key and its id."""
    answer = outsider.call(AUTH + "GetSigningKeys", auth_service_pb2.GetSigningKeysRequest())
    found = auth_service_pb2.GetSigningKeysResponse.FromString(answer).json_web_key_set
    return json.loads(found)["keys"][0]


def with_its_id(outsider, claims):
    key = SigningKey()
    key.key_id = public_key(outsider)["kid"]
    return key.sign(claims)


def by_another_key(_, claims):
    return SigningKey().sign(claims)


def by_a_key_it_brings_along(_, claims):
    key = SigningKey()
    headers = {"kid": key.key_id, "jwk": key.public(), "jku": "https://keys.example"}
    return jwt.encode(claims, key.private, "ES256", headers=headers)


def unsigned(_, claims):
    return jwt.encode(claims, None, "none")


def unsigned_with_its_id(outsider, claims):
    return jwt.encode(claims, None, "none", headers={"kid": public_key(outsider)["kid"]})


def with_the_public_key_for_a_secret(outsider, claims):
    # By hand: PyJWT knows the trick and refuses.
    key = public_key(outsider)
    head = {"alg": "HS256", "typ": "JWT", "kid": key["kid"]}
    parts = [jwt.utils.base64url_encode(json.dumps(part).encode()) for part in (head, claims)]
    signature = hmac.digest(json.dumps(key).encode(), b".".join(parts), "sha256")
    return b".".join([*parts, jwt.utils.base64url_encode(signature)]).decode()


def without_a_signature(outsider, claims):
    return outsider.token(subject=claims["sub"]).rpartition(".")[0] + "."


def with_a_path_for_a_key(_, claims):
    return jwt.encode(claims, "x" * 32, "HS256", headers={"kid": "../../../../dev/null"})


def no_token(*_):
    return "not.a.token"


def a_very_long_one(*_):
    return "a" * 8_000


FORGERIES = [
    by_another_key,
    with_its_id,
    by_a_key_it_brings_along,
    unsigned,
    unsigned_with_its_id,
    with_the_public_key_for_a_secret,
    without_a_signature,
    with_a_path_for_a_key,
    no_token,
    a_very_long_one,
]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_token_that_was_not_issued_opens_nothing(outsider, unchanged, forge):
    pays = forge(outsider, claims_of("USER", subject=outsider.payer.name))
    rules_all = forge(outsider, claims_of("ADMIN", subject=outsider.admin.name))

    assert said(outsider.ask(PAY, outsider.a_payment(), pays)) == NOBODY
    assert said(outsider.ask(WALLETS + "TopUp", a_top_up(outsider), rules_all)) == NOBODY


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"lives": -60}, NOBODY),
        ({"nbf": 2**33}, NOBODY),
        ({"iss": "https://another"}, NOBODY),
        ({"aud": "another"}, NOBODY),
        ({"aud": ["another"]}, NOBODY),
        ({"exp": "never"}, NOBODY),
        ({"roles": []}, NOT_YOU),
        ({"roles": ["user", "ROLE_USER", ""]}, NOT_YOU),
        ({"roles": "USER"}, NOT_YOU),
        ({"roles": {"USER": True}}, NOT_YOU),
        ({"roles": None}, NOT_YOU),
        ({"roles": ["USER", "ROOT"]}, NOBODY),
        ({"iat_us": "never"}, NOBODY),
    ],
    ids=str,
)
def test_claims_that_are_wrong_open_nothing_even_when_we_signed_them(
    outsider, unchanged, claims, expected
):
    token = outsider.token("USER", **{"subject": outsider.payer.name, **claims})

    assert said(outsider.ask(PAY, outsider.a_payment(), token)) == expected


@pytest.mark.parametrize("claim", ["exp", "aud", "iss", "sub", "roles", "iat_us"])
def test_a_claim_left_out_opens_nothing_even_when_we_signed_the_rest(outsider, unchanged, claim):
    claims = claims_of("USER", subject=outsider.payer.name)
    del claims[claim]

    answer = outsider.ask(PAY, outsider.a_payment(), outsider.sign(claims))

    assert said(answer) in {NOBODY, NOT_YOU}


def test_a_token_ends_when_it_says(outsider, unchanged):
    # Clocks may differ by ten seconds, and no more.
    for lives, expected in ((-9.0 + 2, True), (-11.0, False)):
        token = outsider.token("USER", subject=outsider.payer.name, lives=int(lives))
        answer = outsider.ask(PAY, b"", token)
        assert (said(answer) != NOBODY) is expected, lives


@pytest.mark.parametrize(
    "claims",
    [{"roles": ["ADMIN"]}, {"sub": f"users/{uuid4()}"}, {"exp": int(time.time()) + 86_400}],
    ids=lambda claims: next(iter(claims)),
)
def test_claims_changed_under_a_signature_open_nothing(outsider, unchanged, claims):
    token = with_claims(outsider.payer.token, **claims)

    assert said(outsider.ask(PAY, outsider.a_payment(), token)) == NOBODY


@pytest.mark.parametrize(
    "value",
    ["Bearer", "Basic dXNlcjpwYXNz", "bearer {}", "Bearer {}, Bearer {}", "Bearer{}", "{}"],
)
def test_an_authorization_of_another_form_is_none(outsider, unchanged, value):
    header = ("authorization", value.format(outsider.payer.token, "x.y.z"))

    answer = outsider.ask(PAY, outsider.a_payment(), metadata=[header])

    assert said(answer) == NOBODY


def test_two_tokens_are_none(outsider, unchanged):
    two = [("authorization", f"Bearer {person.token}") for person in outsider.payers[:2]]

    assert said(outsider.ask(PAY, outsider.a_payment(), metadata=two)) == NOBODY


def claimed_identities(person, role):
    """Every header in which somebody could say who they are."""
    payload = json.dumps({"sub": person.name, "roles": [role], "iat_us": int(time.time() * 1e6)})
    return [
        ("x-jwt-payload", jwt.utils.base64url_encode(payload.encode()).decode()),
        ("x-user-id", person.name),
        ("x-user-roles", role),
        ("x-forwarded-client-cert", "URI=spiffe://tallystick/gateway"),
        ("x-envoy-original-path", "/"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-envoy-internal", "true"),
    ]


def a_top_up(outsider):
    return wallet_service_pb2.TopUpRequest(
        request_id=str(uuid4()),
        wallet=wallet_of(outsider.payer),
        amount=money(1),
        reference="made up",
    )


def test_an_identity_in_a_header_is_none_on_a_private_rpc(outsider, unchanged):
    top_up, path = a_top_up(outsider), WALLETS + "TopUp"

    for claimed in claimed_identities(outsider.admin, "ADMIN"):
        nobody = outsider.ask(path, top_up, metadata=[claimed])
        somebody = outsider.ask(path, top_up, outsider.payer.token, metadata=[claimed])

        assert said(nobody) == NOBODY, claimed
        assert said(somebody) == NOT_YOU, claimed
    with outsider.web() as browser:
        headers = dict(claimed_identities(outsider.admin, "ADMIN"))
        assert said(browser.call(path, top_up, headers=headers)) == NOBODY
        token = outsider.payer.token
        assert said(browser.call(path, top_up, token=token, headers=headers)) == NOT_YOU


def test_an_identity_in_a_header_is_none_on_a_public_rpc(outsider):
    request = user_service_pb2.RegisterUserRequest(
        request_id=str(uuid4()),
        username=f"outsider-{uuid4().hex[:12]}",
        password=PASSWORD,
        display_name="Somebody",
        role=access_pb2.ROLE_USER,
    )
    claimed = claimed_identities(outsider.admin, "ADMIN")

    answer = outsider.ask(USERS + "RegisterUser", request, metadata=claimed)

    user = user_service_pb2.RegisterUserResponse.FromString(answer.messages[0]).user
    assert user.state == user_pb2.User.STATE_PENDING_APPROVAL
    # A payload that reached the service would be read there, and this one cannot be.
    wrong = auth_service_pb2.LoginRequest(username="nobody-here", password="wrong")
    answer = outsider.ask(LOGIN, wrong, metadata=[("x-jwt-payload", "unreadable")])
    assert answer.reason == ("user.tallystick", "CREDENTIALS_WRONG")


INTERNAL = [rule.path for rule in rules(services()) if not rule.at_gateway]


@pytest.mark.parametrize(
    "path",
    [
        *INTERNAL,
        "/tallystick.payment.v1.PaymentService/PrintMoney",
        "/tallystick.bank.v1.BankService/CreatePayment",
        "/tallystick.payment.v1.PaymentService/",
        "/tallystick.payment.v1.PaymentService/CreatePayment/",
        "/tallystick.payment.v1.paymentservice/CreatePayment",
        "/tallystick.payment.v1.PaymentService/../SettlementService/ResolveHold",
        "/tallystick.payment.v1.PaymentService/./../SettlementService/ResolveHold",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/",
    ],
)
def test_what_is_not_for_outside_is_not_there(outsider, unchanged, path):
    claimed = claimed_identities(outsider.admin, "ADMIN")

    for token in (None, outsider.payer.token, outsider.admin.token):
        answer = outsider.ask(path, b"", token, metadata=claimed)
        assert answer.code is StatusCode.UNIMPLEMENTED
        assert answer.reason == ("gateway.tallystick", "METHOD_UNKNOWN")
    with outsider.web() as browser:
        assert browser.call(path, token=outsider.admin.token).code is StatusCode.UNIMPLEMENTED


def test_the_internal_rpcs_are_there_to_be_tried():
    assert len(INTERNAL) >= 4


def test_a_key_set_of_ones_own_is_not_asked_for(outsider, unchanged):
    # The gateway takes keys from the user service alone, whatever a token recommends.
    key = SigningKey()
    headers = {"kid": key.key_id, "x5u": "https://keys.example", "jwks": key_set(key)}
    claims = claims_of("ADMIN", subject=outsider.admin.name)
    token = jwt.encode(claims, key.private, "ES256", headers=headers)

    assert said(outsider.ask(WALLETS + "TopUp", a_top_up(outsider), token)) == NOBODY


def test_a_spent_refresh_token_ends_the_session_of_who_stole_it_too(outsider):
    person = outsider.registered(access_pb2.ROLE_USER)
    refresh = AUTH + "RefreshToken"
    stolen = person.refresh_token
    first = auth_service_pb2.RefreshTokenResponse.FromString(
        outsider.call(refresh, auth_service_pb2.RefreshTokenRequest(refresh_token=stolen))
    ).session

    again = outsider.ask(refresh, auth_service_pb2.RefreshTokenRequest(refresh_token=stolen))
    next_one = outsider.ask(
        refresh, auth_service_pb2.RefreshTokenRequest(refresh_token=first.refresh_token)
    )

    assert again.reason == ("user.tallystick", "REFRESH_TOKEN_REUSED")
    assert next_one.code is StatusCode.UNAUTHENTICATED
