"""Random messages to every RPC, as everybody, through the real Envoy: no service fails, hangs or loses count."""

import random
import re
from types import SimpleNamespace

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uuid_utils import UUID, uuid4

from bench.seed import CURRENCY
from buf.validate import validate_pb2
from services.gateway.contract import services
from services.rpc.contract import rule
from tallystick.access.v1 import access_pb2
from tallystick.admin.v1 import review_service_pb2
from tallystick.payment.v1 import payment_service_pb2, wallet_service_pb2
from tallystick.type.v1 import position_pb2
from tallystick.user.v1 import site_service_pb2, user_service_pb2
from tests.gateway import until
from tests.outsider import (
    PASSWORD,
    PAY,
    REVIEWS,
    SITES,
    USERS,
    WALLETS,
    enrolled,
    money,
    wallet_of,
)

# What nobody must be able to bring about by what they send.
FAILURES = {
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.UNAVAILABLE,
}
METHODS = [method for service in services() for method in service.methods]
AT_GATEWAY = [method for method in METHODS if rule(method).at_gateway]
USUAL_INTS, USUAL_DEGREES = (1, 2, 50, 100), (12.97, 77.59, 0.0, 30.0)
INT64 = (0, 500_01, 10**13, 10**13 + 1, -1, 2**63 - 1, -(2**63))
INT32 = (0, 200, 201, -1, 2**31 - 1, -(2**31))
DEGREES = (-0.0, 90.0, -180.0, 90.1, 5e-324, 1e308, float("nan"), float("inf"))
ROLES = {
    access_pb2.ROLE_USER: "payer",
    access_pb2.ROLE_VENDOR: "vendor",
    access_pb2.ROLE_ADMIN: "operator",
    access_pb2.ROLE_TERMINAL: "terminal",
}
STRANGE = ("", "\0", "x" * 5_000, "\u202e\U0001f4b8", "%s{0}' OR 1=1 --", "users/", "a\r\nb: c")


@pytest.fixture(scope="module")
def crowd(outsider):
    """Somebody of every kind, and names that mean something: one's own, and for the operator other people's."""
    payer, victim = (outsider.approved(access_pb2.ROLE_USER) for _ in range(2))
    vendor = outsider.approved(access_pb2.ROLE_VENDOR)
    for person in (payer, victim):
        top_up = wallet_service_pb2.TopUpRequest(
            request_id=str(uuid4()),
            wallet=wallet_of(person),
            amount=money(10_000_00),
            reference="cash",
        )
        outsider.call(WALLETS + "TopUp", top_up, outsider.admin.token)
    paid = outsider.call(PAY, outsider.a_payment(vendor=vendor.name), payer.token)
    payment = payment_service_pb2.CreatePaymentResponse.FromString(paid).payment
    sites = site_service_pb2.ListSitesResponse.FromString(
        outsider.call(
            SITES + "ListSites",
            site_service_pb2.ListSitesRequest(parent=vendor.name),
            vendor.token,
        )
    ).sites
    terminal = enrolled(outsider, vendor, sites[0].name)
    far_away = position_pb2.Position(latitude=-40.0, longitude=20.0)
    held = outsider.call(PAY, outsider.a_payment(position=far_away), payer.token)
    flagged = payment_service_pb2.CreatePaymentResponse.FromString(held).payment
    username = f"operator-{uuid4().hex[:12]}"
    another = user_service_pb2.CreateAdminRequest(
        request_id=str(uuid4()), username=username, password=PASSWORD, display_name="Operator"
    )
    outsider.call(USERS + "CreateAdmin", another, outsider.admin.token)
    shared = [
        vendor.name,
        wallet_of(vendor),
        payment.name,
        payment.request_id,
        sites[0].name,
        terminal.name,
        f"codes/{uuid4()}",
        f"batches/{uuid4()}",
        "main",
        f"users/{uuid4()}",
        f"payments/{uuid4()}",
        f"cases/{uuid4()}",
        until(lambda: case_of(outsider, flagged)),
        CURRENCY,
        "XTS",
        f"somebody-{uuid4().hex[:8]}",
        "0-0",
    ]
    # Whom the operator suspends, nobody of the crowd may be: they would have no more to say.
    own = [*shared, payer.name, wallet_of(payer)]
    others = [*shared[1:], victim.name, wallet_of(victim)]
    return {
        "nobody": SimpleNamespace(token=None, names=own),
        "pending": SimpleNamespace(
            token=outsider.registered(access_pb2.ROLE_USER).token, names=own
        ),
        "payer": SimpleNamespace(token=payer.token, names=own),
        "vendor": SimpleNamespace(token=vendor.token, names=own),
        "terminal": SimpleNamespace(token=terminal.token, names=own),
        "operator": SimpleNamespace(token=outsider.sign_in(username, PASSWORD).token, names=others),
    }


def case_of(outsider, payment):
    asked = review_service_pb2.ListCasesRequest(kind=review_service_pb2.Case.KIND_FLAGGED_PAYMENT)
    found = outsider.call(REVIEWS + "ListCases", asked, outsider.admin.token)
    cases = review_service_pb2.ListCasesResponse.FromString(found).cases
    return next((case.name for case in cases if case.payment.name == payment.name), None)


def contents(descriptor, names):
    """Bytes to send: messages, messages that lost or gained some bytes, and bytes."""
    whole = messages(descriptor, names).map(lambda message: message.SerializeToString())
    return mostly(
        whole,
        st.tuples(whole, st.integers(0, 200)).map(lambda cut: cut[0][: cut[1]])
        | st.tuples(whole, st.binary(max_size=20)).map(b"".join)
        | st.binary(max_size=200),
    )


def messages(descriptor, names):
    """Messages that look as the contract wants them, mostly."""
    kind = message_factory.GetMessageClass(descriptor)
    required = {field.name: values(field, names) for field in descriptor.fields}
    left_out = st.just(set())
    if required:
        left_out = mostly(left_out, st.sets(st.sampled_from(sorted(required)), max_size=2))

    def build(given):
        facts, without = given
        return kind(**{name: value for name, value in facts.items() if name not in without})

    return st.tuples(st.fixed_dictionaries(required), left_out).map(build)


def values(field, names):
    one = value(field, names)
    return st.lists(one, max_size=11) if field.is_repeated else one


def value(field, names):
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return messages(field.message_type, names)
    if field.type == FieldDescriptor.TYPE_STRING:
        return texts(field, names)
    if field.type == FieldDescriptor.TYPE_ENUM:
        numbers = [known.number for known in field.enum_type.values]
        return mostly(st.sampled_from(numbers), st.sampled_from([99, -1]))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        length = field.GetOptions().Extensions[validate_pb2.field].bytes.len or 64
        return mostly(st.binary(min_size=length, max_size=length), st.binary(max_size=300))
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return mostly(st.sampled_from(USUAL_DEGREES), st.sampled_from(DEGREES) | st.floats())
    edges, bits = {
        FieldDescriptor.TYPE_INT32: (INT32, 31),
        FieldDescriptor.TYPE_INT64: (INT64, 63),
    }[field.type]
    any_integer = st.integers(-(2**bits), 2**bits - 1)
    return mostly(st.sampled_from(USUAL_INTS), st.sampled_from(edges) | any_integer)


def texts(field, names):
    """Strings that the field's own rule lets pass, mostly."""
    any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    strange = st.sampled_from(STRANGE) | any_text
    rules = field.GetOptions().Extensions[validate_pb2.field].string
    if rules.uuid:
        made = st.integers(0, 2**128 - 1).map(lambda number: str(UUID(int=number)))
        return mostly(made, strange)
    fitting = [name for name in names if not rules.pattern or re.search(rules.pattern, name)]
    if not fitting:
        return strange
    return mostly(st.sampled_from(fitting), strange)


def mostly(usual, else_):
    return st.integers(0, 9).flatmap(lambda dice: usual if dice else else_)


def check(outsider, crowd, method, who, content):
    answer = outsider.ask(rule(method).path, content, crowd[who].token)

    assert answer.code not in FAILURES, answer
    if answer.code is StatusCode.OK:
        message_factory.GetMessageClass(method.output_type).FromString(answer.messages[0])
    else:
        kinds = [detail.TypeName() for detail in answer.status.details]
        assert kinds.count(error_details_pb2.ErrorInfo.DESCRIPTOR.full_name) == 1, answer


@st.composite
def calls(draw, crowd):
    """(method, who, content)."""
    method = draw(st.sampled_from(AT_GATEWAY))
    who = draw(mostly(st.sampled_from(allowed(method)), st.sampled_from(sorted(crowd))))
    return method, who, draw(contents(method.input_type, crowd[who].names))


def allowed(method):
    """Who may call an RPC."""
    if rule(method).public:
        return ["nobody"]
    return [ROLES[role] for role in sorted(rule(method).roles)]


def harmless(outsider, crowd, *, examples):
    @settings(
        max_examples=examples,
        deadline=None,
        # What is wrong is told best by the very call that brought it about.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        database=None,
    )
    @given(call=calls(crowd))
    def send(call):
        check(outsider, crowd, *call)

    before = outsider.stack.endpoints.processes
    send()
    # Payments that nobody waited for end here, and not in the middle of another test.
    until(outsider.is_settled)
    assert outsider.stack.endpoints.processes == before
    assert outsider.broken_laws() == []


def test_nothing_that_can_be_sent_makes_a_service_fail(outsider, crowd):
    harmless(outsider, crowd, examples=600)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_that_can_be_sent_makes_a_service_fail_however_long_one_tries(outsider, crowd):
    harmless(outsider, crowd, examples=20_000)


@pytest.mark.parametrize("method", AT_GATEWAY, ids=lambda method: method.name)
def test_no_rpc_fails_for_who_may_call_it(outsider, crowd, method):
    """A few messages to each of them, so that none is left to chance."""
    noise = random.Random(method.full_name)
    for who in allowed(method):
        for _ in range(4):
            content = noise.randbytes(noise.choice([1, 7, 40, 300]))
            check(outsider, crowd, method, who, content)
        check(outsider, crowd, method, who, b"")
