"""How often one may call: the token buckets of the real Envoy."""

from __future__ import annotations

from contextlib import ExitStack

import grpc
import pytest
from google.rpc import error_details_pb2
from uuid_utils import uuid4

from tests.gateway import PUBLIC_BURST, until

CODE = grpc.StatusCode
PAYMENTS = "/tallystick.payment.v1.PaymentService/"
CREATE = PAYMENTS + "CreatePayment"
BATCH = PAYMENTS + "BatchCreatePayments"
LIST = PAYMENTS + "ListPayments"
REFUND = PAYMENTS + "RefundPayment"
SYNC = "/tallystick.offline.v1.TerminalSyncService/"
GET_TRUST_BUNDLE = SYNC + "GetTrustBundle"
GET_JOURNAL_HEAD = SYNC + "GetJournalHead"
GET_SIGNING_KEYS = "/tallystick.user.v1.AuthService/GetSigningKeys"


@pytest.fixture
def browser(gateway):
    with gateway.web() as opened:
        yield opened


def empty(gateway, token):
    """Make the ten payments a minute that one may make."""
    answers = [gateway.call(CREATE, token=token) for _ in range(10)]
    assert all(answer.reached_the_service for answer in answers)


def test_the_eleventh_payment_of_a_burst_is_refused_with_when_to_repeat_it(gateway):
    token = gateway.token("USER")
    empty(gateway, token)

    refused = gateway.call(CREATE, token=token)

    assert refused.code is CODE.RESOURCE_EXHAUSTED
    assert refused.reason == ("gateway.tallystick", "RATE_LIMITED")
    assert refused.headers["retry-after"] == "6"
    assert refused.detail(error_details_pb2.RetryInfo).retry_delay.seconds == 6
    info = refused.detail(error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"rateClass": "PAYMENT", "retryAfterSeconds": "6"}
    assert "6 s" in refused.message
    assert refused.headers["x-ratelimit-limit"] == "10"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert 0 < int(refused.headers["x-ratelimit-reset"]) <= 6


def test_a_browser_is_refused_in_the_same_words(gateway, browser):
    token = gateway.token("USER")
    empty(gateway, token)

    native, web = gateway.call(CREATE, token=token), browser.call(CREATE, token=token)

    assert web.code is native.code is CODE.RESOURCE_EXHAUSTED
    assert web.status == native.status
    assert web.message == native.message
    assert web.headers["retry-after"] == native.headers["retry-after"]
    assert "retry-after" in web.headers["access-control-expose-headers"]


def test_who_calls_by_two_ways_draws_from_one_bucket(gateway, browser):
    token = gateway.token("USER")

    answers = [gateway.call(CREATE, token=token) for _ in range(5)]
    answers += [browser.call(CREATE, token=token) for _ in range(6)]

    assert [answer.reached_the_service for answer in answers] == [True] * 10 + [False]


def test_more_connections_and_worker_threads_give_no_more_tokens(gateway):
    token = gateway.token("USER")

    with ExitStack() as stack:
        browsers = [stack.enter_context(gateway.web()) for _ in range(8)]
        answers = [browser.call(CREATE, token=token) for browser in browsers]
        listener = f"listener.127.0.0.1_{gateway.port}"
        workers = [gateway.stat(f"{listener}.worker_{n}.downstream_cx_active") for n in (0, 1)]
        answers += [browser.call(CREATE, token=token) for browser in browsers * 2]

    assert min(workers) >= 4
    assert sum(answer.reached_the_service for answer in answers) == 10


def test_another_user_is_unaffected(gateway):
    empty(gateway, gateway.token("USER"))

    assert gateway.call(CREATE, token=gateway.token("USER")).reached_the_service


def test_a_new_token_does_not_fill_the_bucket(gateway):
    token = gateway.token("USER", subject="users/6d0e7a52-7f3b-4d4c-9f39-0c8e26ad3e01")
    empty(gateway, token)

    again = gateway.token("VENDOR", subject="users/6d0e7a52-7f3b-4d4c-9f39-0c8e26ad3e01")

    assert gateway.call(CREATE, token=again).code is CODE.RESOURCE_EXHAUSTED


def test_a_spoofed_identity_does_not_fill_the_bucket(gateway):
    token = gateway.token("USER")
    empty(gateway, token)

    spoofed = [
        ("x-user-id", "users/1"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-jwt-payload", "e30"),
    ]

    assert gateway.call(CREATE, token=token, metadata=spoofed).code is CODE.RESOURCE_EXHAUSTED


def test_a_batch_draws_ten_at_once(gateway):
    token = gateway.token("USER")

    assert gateway.call(BATCH, token=token).reached_the_service
    assert gateway.call(CREATE, token=token).code is CODE.RESOURCE_EXHAUSTED


def test_a_batch_that_finds_nine_tokens_takes_none_and_says_how_long_ten_take(gateway):
    token = gateway.token("USER")
    gateway.call(CREATE, token=token)

    refused = gateway.call(BATCH, token=token)

    assert refused.code is CODE.RESOURCE_EXHAUSTED
    assert refused.headers["retry-after"] == "60"
    assert refused.detail(error_details_pb2.RetryInfo).retry_delay.seconds == 60
    assert gateway.call(CREATE, token=token).headers["x-ratelimit-remaining"] == "8"


def test_a_class_does_not_draw_from_another(gateway):
    token = gateway.token("VENDOR")
    empty(gateway, token)

    read, write = gateway.call(LIST, token=token), gateway.call(REFUND, token=token)

    assert (read.headers["x-ratelimit-limit"], write.headers["x-ratelimit-limit"]) == ("100", "30")
    assert read.headers["x-ratelimit-remaining"] == "99"


def test_a_token_comes_back_after_its_interval(gateway):
    token = gateway.token("VENDOR")
    burst = [gateway.call(REFUND, token=token) for _ in range(31)]
    refused = next(answer for answer in burst if answer.code is CODE.RESOURCE_EXHAUSTED)
    assert refused.headers["retry-after"] == "1"

    until(lambda: gateway.call(REFUND, token=token).reached_the_service, seconds=1.5)


def test_a_refused_call_never_reaches_the_service(gateway):
    token = gateway.token("USER")
    empty(gateway, token)
    before = sum(len(each.calls) for each in gateway.backends["payment"])

    for _ in range(5):
        gateway.call(CREATE, token=token)

    assert sum(len(each.calls) for each in gateway.backends["payment"]) == before


def test_every_terminal_of_a_vendor_has_a_bucket_of_its_own(gateway):
    vendor = f"users/{uuid4()}"
    first, second = (
        gateway.token("TERMINAL", subject=f"{vendor}/terminals/{uuid4()}") for _ in range(2)
    )
    draws = [gateway.call(GET_TRUST_BUNDLE, token=token) for token in (first, first, second)]

    left = [int(answer.headers["x-ratelimit-remaining"]) for answer in draws]
    limit = int(draws[0].headers["x-ratelimit-limit"])
    assert left == [limit - 1, limit - 2, limit - 1]
    # Nor does a terminal draw from its vendor, who uploads what a broken one exported.
    own = gateway.call(GET_JOURNAL_HEAD, token=gateway.token("VENDOR", subject=vendor))
    assert int(own.headers["x-ratelimit-remaining"]) == limit - 1


def test_a_call_that_may_not_be_made_draws_nothing(gateway):
    token = gateway.token("TERMINAL", subject="users/1d5b3fcd-1a86-4d64-9e2d-f1c3f1f0a9b7")
    for _ in range(12):
        assert gateway.call(CREATE, token=token).code is CODE.PERMISSION_DENIED

    user = gateway.token("USER", subject="users/1d5b3fcd-1a86-4d64-9e2d-f1c3f1f0a9b7")
    assert gateway.call(CREATE, token=user).headers["x-ratelimit-remaining"] == "9"


def test_calls_without_a_token_are_limited_by_address(gateway):
    with gateway.web("127.0.0.2") as stranger, gateway.web("127.0.0.3") as neighbour:
        # What flows back while we empty it is refused sooner or later too.
        answers = [stranger.call(GET_SIGNING_KEYS) for _ in range(PUBLIC_BURST + 20)]
        unaffected = neighbour.call(GET_SIGNING_KEYS)

    refused = [answer for answer in answers if answer.code is CODE.RESOURCE_EXHAUSTED]
    assert refused
    assert refused[0].reason == ("gateway.tallystick", "RATE_LIMITED")
    assert answers.index(refused[0]) >= PUBLIC_BURST
    assert unaffected.code is CODE.OK


def test_a_token_does_not_lift_the_limit_by_address(gateway):
    with gateway.web("127.0.0.4") as stranger:
        answers = [
            stranger.call(GET_SIGNING_KEYS, token=gateway.token("USER"))
            for _ in range(PUBLIC_BURST + 20)
        ]

    assert answers[-1].code is CODE.RESOURCE_EXHAUSTED
