"""Requests that must not be carried out, through the real Envoy: a precise answer, and nothing changed."""

import grpc
import pytest
from grpc import StatusCode
from uuid_utils import uuid4

from bench.seed import CURRENCY
from services import paging
from tallystick.access.v1 import access_pb2
from tallystick.admin.v1 import review_service_pb2
from tallystick.payment.v1 import payment_pb2, wallet_service_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick.type.v1 import position_pb2
from tallystick.user.v1 import site_service_pb2, user_service_pb2
from tests.outsider import (
    PAY,
    PAYMENTS,
    REVIEWS,
    SITES,
    USERS,
    WALLETS,
    fields,
    money,
    wallet_of,
)

INT64_MAX, INT64_MIN = 2**63 - 1, -(2**63)
FIELDS_INVALID = (StatusCode.INVALID_ARGUMENT, ("access.tallystick", "FIELDS_INVALID"))


def payment(code, reason):
    return code, ("payment.tallystick", reason)


def said(answer):
    return answer.code, answer.reason


@pytest.fixture(scope="module")
def settled(outsider):
    """A payment that succeeded."""
    answer = outsider.call(PAY, outsider.a_payment(), outsider.payer.token)
    found = pb.CreatePaymentResponse.FromString(answer).payment
    assert found.state == payment_pb2.Payment.STATE_SUCCESS
    return found


def moves(outsider, settled, amount):
    """(path, request, token) of every call that moves money, with the same amount."""
    of_payer = {"request_id": str(uuid4()), "wallet": wallet_of(outsider.payer), "amount": amount}
    return {
        "pay": (PAY, outsider.a_payment(amount), outsider.payer.token),
        "refund": (
            PAYMENTS + "RefundPayment",
            pb.RefundPaymentRequest(name=settled.name, request_id=str(uuid4()), amount=amount),
            outsider.vendor.token,
        ),
        "top up": (
            WALLETS + "TopUp",
            wallet_service_pb2.TopUpRequest(**of_payer, reference="x"),
            outsider.admin.token,
        ),
        "move": (
            WALLETS + "MoveBalance",
            wallet_service_pb2.MoveBalanceRequest(
                **of_payer, direction=wallet_service_pb2.MoveBalanceRequest.DIRECTION_TO_OFFLINE
            ),
            outsider.payer.token,
        ),
        "pay out": (
            WALLETS + "Payout",
            wallet_service_pb2.PayoutRequest(**of_payer, reference="x"),
            outsider.payer.token,
        ),
    }


EVERY_MOVE = ("pay", "refund", "top up", "move", "pay out")


@pytest.mark.parametrize("move", EVERY_MOVE)
@pytest.mark.parametrize(
    ("amount", "field"),
    [
        (None, "amount"),
        (money(0), "amount"),
        (money(-1), "amount"),
        (money(-INT64_MAX), "amount"),
        (money(INT64_MIN), "amount"),
        (money(1, "rupees"), "amount.currency_code"),
        (money(1, "inr"), "amount.currency_code"),
        (money(1, "IN\0"), "amount.currency_code"),
        (money(1, ""), "amount.currency_code"),
    ],
    ids=lambda value: repr(str(value)).strip("'") if not isinstance(value, str) else "",
)
def test_an_amount_that_is_none_is_refused_by_name(
    outsider, settled, unchanged, *, move, amount, field
):
    answer = outsider.ask(*moves(outsider, settled, amount)[move])

    assert said(answer) == FIELDS_INVALID
    assert fields(answer) == {field}


@pytest.mark.parametrize(
    ("move", "expected"),
    {
        "pay": payment(StatusCode.INVALID_ARGUMENT, "CURRENCY_UNSUPPORTED"),
        "refund": payment(StatusCode.INVALID_ARGUMENT, "CURRENCY_MISMATCH"),
        "top up": payment(StatusCode.INVALID_ARGUMENT, "CURRENCY_MISMATCH"),
        "move": payment(StatusCode.INVALID_ARGUMENT, "CURRENCY_MISMATCH"),
        "pay out": payment(StatusCode.INVALID_ARGUMENT, "CURRENCY_MISMATCH"),
    }.items(),
)
def test_a_currency_nobody_keeps_is_refused(outsider, settled, unchanged, *, move, expected):
    answer = outsider.ask(*moves(outsider, settled, money(1_00, "XTS"))[move])

    assert said(answer) == expected


@pytest.mark.parametrize(
    ("move", "expected"),
    {
        "pay": payment(StatusCode.INVALID_ARGUMENT, "AMOUNT_OVER_LIMIT"),
        "refund": payment(StatusCode.FAILED_PRECONDITION, "REFUND_EXCEEDS_PAYMENT"),
        "top up": payment(StatusCode.INVALID_ARGUMENT, "AMOUNT_OVER_LIMIT"),
        "move": payment(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS"),
        "pay out": payment(StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS"),
    }.items(),
)
@pytest.mark.parametrize("amount", [10**13 + 1, INT64_MAX - 1, INT64_MAX])
def test_more_than_an_account_can_hold_moves_nothing(
    outsider, settled, unchanged, *, move, expected, amount
):
    answer = outsider.ask(*moves(outsider, settled, money(amount))[move])

    assert said(answer) == expected


@pytest.mark.parametrize(
    "varint",
    [
        b"\x80" * 9 + b"\x01",  # 2^63, which as an int64 is the smallest
        b"\xff" * 9 + b"\x01",  # 2^64 - 1, which is -1
        b"\xff" * 9 + b"\x7f",  # 70 bits
        b"\xff" * 10 + b"\x01",  # 77 bits: no varint at all
        b"\xff" * 9,  # no end
    ],
)
@pytest.mark.parametrize("move", EVERY_MOVE)
def test_an_amount_beyond_int64_on_the_wire_moves_nothing(
    outsider, settled, unchanged, *, move, varint
):
    path, request, token = moves(outsider, settled, None)[move]
    number = request.DESCRIPTOR.fields_by_name["amount"].number
    amount = b"\x08" + varint + b"\x12\x03INR"
    content = request.SerializeToString() + bytes([number << 3 | 2, len(amount)]) + amount

    answer = outsider.ask(path, content, token)

    assert said(answer) == FIELDS_INVALID


def test_of_two_amounts_in_one_message_neither_escapes_the_rules(outsider, unchanged):
    # Protobuf merges a field that comes twice: the first has the currency, the second the number.
    request = outsider.a_payment(money(1_00))
    content = request.SerializeToString() + b"\x1a\x0b\x08" + b"\xff" * 9 + b"\x01"

    assert said(outsider.ask(PAY, content, outsider.payer.token)) == FIELDS_INVALID


def test_nobody_pays_themselves(outsider, unchanged):
    by_name = outsider.a_payment(vendor=outsider.payer.name)

    assert said(outsider.ask(PAY, by_name, outsider.payer.token)) == payment(
        StatusCode.INVALID_ARGUMENT, "SELF_PAYMENT"
    )


def test_who_is_not_a_vendor_is_not_paid(outsider, unchanged):
    nobody = outsider.a_payment(vendor=f"users/{uuid4()}")
    payer = outsider.a_payment(vendor=outsider.payers[1].name)

    for request in (nobody, payer):
        assert said(outsider.ask(PAY, request, outsider.payer.token)) == payment(
            StatusCode.NOT_FOUND, "VENDOR_NOT_FOUND"
        )


@pytest.mark.parametrize("standing", ["registered", "suspended"])
def test_who_is_not_approved_or_is_suspended_neither_pays_nor_is_paid(outsider, standing):
    payer = getattr(outsider, standing)(access_pb2.ROLE_USER)
    vendor = getattr(outsider, standing)(access_pb2.ROLE_VENDOR)
    before = outsider.books()

    pays = outsider.ask(PAY, outsider.a_payment(), payer.token)
    is_paid = outsider.ask(PAY, outsider.a_payment(vendor=vendor.name), outsider.payer.token)
    moves_own = wallet_service_pb2.PayoutRequest(
        request_id=str(uuid4()), wallet=wallet_of(payer), amount=money(1), reference="x"
    )
    takes_out = outsider.ask(WALLETS + "Payout", moves_own, payer.token)

    if standing == "registered":
        assert said(pays) == payment(StatusCode.FAILED_PRECONDITION, "PAYER_NOT_ACTIVE")
        assert takes_out.code in {StatusCode.FAILED_PRECONDITION, StatusCode.NOT_FOUND}
    else:
        revoked = (StatusCode.UNAUTHENTICATED, ("access.tallystick", "TOKEN_REVOKED"))
        assert said(pays) == said(takes_out) == revoked
    assert said(is_paid) == payment(StatusCode.FAILED_PRECONDITION, "VENDOR_NOT_ACTIVE")
    assert outsider.books() == before


def test_nobody_puts_money_into_the_wallet_of_a_suspended_person(outsider):
    payer = outsider.suspended(access_pb2.ROLE_USER)
    before = outsider.books()
    top_up = wallet_service_pb2.TopUpRequest(
        request_id=str(uuid4()), wallet=wallet_of(payer), amount=money(1), reference="x"
    )

    answer = outsider.ask(WALLETS + "TopUp", top_up, outsider.admin.token)

    assert said(answer) == payment(StatusCode.FAILED_PRECONDITION, "WALLET_NOT_ACTIVE")
    assert outsider.books() == before


@pytest.mark.parametrize("move", EVERY_MOVE)
def test_a_request_id_with_another_body_is_refused_and_the_first_stands(outsider, settled, move):
    path, request, token = moves(outsider, settled, money(1))[move]
    first = outsider.call(path, request, token)
    before = outsider.books()

    request.amount.minor_units = 2
    other = outsider.ask(path, request, token)
    request.amount.minor_units = 1
    again = outsider.call(path, request, token)

    assert said(other) == payment(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert again == first
    assert outsider.books() == before


def test_a_request_id_belongs_to_whoever_made_it(outsider):
    request = outsider.a_payment()
    first = outsider.call(PAY, request, outsider.payers[0].token)
    before = outsider.books()
    asked = pb.GetPaymentRequest(request_id=request.request_id)

    found = outsider.ask(PAYMENTS + "GetPayment", asked, outsider.payers[1].token)

    assert said(found) == payment(StatusCode.NOT_FOUND, "PAYMENT_NOT_FOUND")
    assert outsider.books() == before
    # The same id of somebody else is another request.
    second = outsider.call(PAY, request, outsider.payers[1].token)
    assert _payment(first).name != _payment(second).name


def _payment(answer):
    return pb.CreatePaymentResponse.FromString(answer).payment


@pytest.mark.parametrize(
    ("path", "message", "token", "missing"),
    [
        (PAY, pb.CreatePaymentRequest, "payer", {"request_id", "vendor", "amount"}),
        (PAYMENTS + "BatchCreatePayments", pb.BatchCreatePaymentsRequest, "payer", {"requests"}),
        (PAYMENTS + "GetPayment", pb.GetPaymentRequest, "payer", {"key"}),
        (PAYMENTS + "ListPayments", pb.ListPaymentsRequest, "payer", {"parent", "currency_code"}),
        (
            PAYMENTS + "RefundPayment",
            pb.RefundPaymentRequest,
            "vendor",
            {"name", "request_id", "amount"},
        ),
        (
            WALLETS + "MoveBalance",
            wallet_service_pb2.MoveBalanceRequest,
            "payer",
            {"request_id", "wallet", "amount", "direction"},
        ),
        (
            USERS + "RegisterUser",
            user_service_pb2.RegisterUserRequest,
            None,
            {"request_id", "username", "password", "display_name", "role"},
        ),
        (
            REVIEWS + "DecideCase",
            review_service_pb2.DecideCaseRequest,
            "admin",
            {"name", "decision", "reason"},
        ),
    ],
)
def test_every_missing_field_is_named(outsider, unchanged, *, path, message, token, missing):
    answer = outsider.ask(path, message(), token and getattr(outsider, token).token)

    assert said(answer) == FIELDS_INVALID
    assert fields(answer) == missing


@pytest.mark.parametrize(
    "position",
    [
        {"latitude": float("nan")},
        {"longitude": float("inf")},
        {"latitude": 90.000001},
        {"longitude": -180.1},
        {"accuracy_meters": -1.0},
        {"accuracy_meters": float("-inf")},
    ],
    ids=str,
)
def test_a_position_that_is_nowhere_is_refused(outsider, unchanged, position):
    request = outsider.a_payment(position=position_pb2.Position(**position))

    answer = outsider.ask(PAY, request, outsider.payer.token)

    assert said(answer) == FIELDS_INVALID
    assert fields(answer) == {f"position.{next(iter(position))}"}


@pytest.mark.parametrize(
    "name",
    [
        "users/00000000-0000-0000-0000-00000000000g",
        "users/../users/00000000-0000-0000-0000-000000000000",
        "USERS/00000000-0000-0000-0000-000000000000",
        "users/00000000-0000-0000-0000-000000000000\n",
        "users/00000000-0000-0000-0000-000000000000/wallets/INR",
        "' OR 1=1 --",
        "users/" + "0" * 100_000,
    ],
    ids=lambda name: repr(f"{name[:10]}…{name[-12:]}"),
)
def test_a_name_that_is_none_is_refused(outsider, unchanged, name):
    asked = user_service_pb2.GetUserRequest(name=name)
    paid = outsider.a_payment(vendor=name)

    for path, request in ((USERS + "GetUser", asked), (PAY, paid)):
        assert said(outsider.ask(path, request, outsider.payer.token)) == FIELDS_INVALID


def test_other_peoples_money_and_records_are_not_there(outsider, settled, unchanged):
    stranger, victim = outsider.payers[1], outsider.payers[0]
    of_victim = {"wallet": wallet_of(victim), "amount": money(1), "request_id": str(uuid4())}
    move = wallet_service_pb2.MoveBalanceRequest(**of_victim, direction=1)
    pay_out = wallet_service_pb2.PayoutRequest(**of_victim, reference="x")
    payments = pb.ListPaymentsRequest(parent=victim.name, currency_code=CURRENCY)
    wallet = wallet_service_pb2.GetWalletRequest(name=wallet_of(victim))
    transfers = wallet_service_pb2.ListTransfersRequest(parent=wallet_of(victim))

    for path, request, reason in [
        (PAYMENTS + "GetPayment", pb.GetPaymentRequest(name=settled.name), "PAYMENT_NOT_FOUND"),
        (PAYMENTS + "ListPayments", payments, "WALLET_NOT_FOUND"),
        (WALLETS + "GetWallet", wallet, "WALLET_NOT_FOUND"),
        (WALLETS + "ListTransfers", transfers, "WALLET_NOT_FOUND"),
        (WALLETS + "MoveBalance", move, "WALLET_NOT_FOUND"),
        (WALLETS + "Payout", pay_out, "WALLET_NOT_FOUND"),
    ]:
        answer = outsider.ask(path, request, stranger.token)
        assert said(answer) == payment(StatusCode.NOT_FOUND, reason), path
    known = user_service_pb2.GetUserRequest(name=victim.name)
    answer = outsider.ask(USERS + "GetUser", known, stranger.token)
    assert said(answer) == (StatusCode.NOT_FOUND, ("user.tallystick", "USER_NOT_FOUND"))


def lists(outsider, token):
    """Every list: (path, request with that page token, who asks, what its tokens are bound to)."""
    payer, vendor, admin = outsider.payer, outsider.vendor, outsider.admin
    return [
        (
            PAYMENTS + "ListPayments",
            pb.ListPaymentsRequest(parent=payer.name, currency_code=CURRENCY, page_token=token),
            payer,
            (payer.name, CURRENCY, 0),
        ),
        (
            WALLETS + "ListTransfers",
            wallet_service_pb2.ListTransfersRequest(parent=wallet_of(payer), page_token=token),
            payer,
            (wallet_of(payer),),
        ),
        (
            USERS + "ListUsers",
            user_service_pb2.ListUsersRequest(page_token=token),
            admin,
            ("users", 0, 0),
        ),
        (
            SITES + "ListSites",
            site_service_pb2.ListSitesRequest(parent=vendor.name, page_token=token),
            vendor,
            ("sites", vendor.name),
        ),
        (
            REVIEWS + "ListCases",
            review_service_pb2.ListCasesRequest(page_token=token),
            admin,
            (0, 0),
        ),
    ]


@pytest.mark.parametrize("token", ["x", "AAAA", "A" * 32, "A" * 256, "é", "====", "\0", "../../x"])
def test_a_page_token_nobody_gave_is_refused(outsider, unchanged, token):
    for path, request, person, _ in lists(outsider, token):
        answer = outsider.ask(path, request, person.token)

        assert said(answer) == (
            StatusCode.INVALID_ARGUMENT,
            ("access.tallystick", "PAGE_TOKEN_INVALID"),
        ), path


@pytest.mark.parametrize("length", [1, 8, 15, 17, 64, 180])
def test_a_page_token_made_by_who_knows_how_is_refused_when_it_is_no_place(outsider, length):
    for number, (_, _, _, query) in enumerate(lists(outsider, "")):
        token = paging.issue(b"\xff" * length, *query)
        path, request, person, _ = lists(outsider, token)[number]

        answer = outsider.ask(path, request, person.token)

        assert answer.reason == ("access.tallystick", "PAGE_TOKEN_INVALID"), path


def test_a_page_token_of_ones_own_making_opens_nobody_elses_list(outsider):
    # What marks a token is no secret: it must not need to be one.
    stranger, victim = outsider.payers[1], outsider.payers[0]
    token = paging.issue(b"\xff" * 16, victim.name, CURRENCY, 0)
    request = pb.ListPaymentsRequest(
        parent=victim.name, currency_code=CURRENCY, page_token=token, page_size=200
    )

    answer = outsider.ask(PAYMENTS + "ListPayments", request, stranger.token)

    assert said(answer) == payment(StatusCode.NOT_FOUND, "WALLET_NOT_FOUND")


@pytest.mark.parametrize("size", [-1, 201, 2**31 - 1, -(2**31)])
def test_a_page_of_a_size_nobody_serves_is_refused(outsider, size):
    for path, request, person, _ in lists(outsider, ""):
        request.page_size = size

        answer = outsider.ask(path, request, person.token)

        assert (said(answer), fields(answer)) == (FIELDS_INVALID, {"page_size"}), path


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "1-1",
        "-",
        "$",
        "0-0 ",
        "99999999999999999999-0",
        "18446744073709551615-18446744073709551615",
        "\u0660-\u0660",
    ],
)
def test_a_cursor_nobody_gave_is_refused(outsider, settled, cursor):
    streams = [
        (PAYMENTS + "WatchPayments", pb.WatchPaymentsRequest(cursor=cursor), outsider.payer),
        (
            REVIEWS + "WatchCases",
            review_service_pb2.WatchCasesRequest(cursor=cursor),
            outsider.admin,
        ),
    ]

    for path, request, person in streams:
        answer = outsider.ask(path, request, person.token)

        assert said(answer) == (
            grpc.StatusCode.OUT_OF_RANGE,
            ("access.tallystick", "CURSOR_EXPIRED"),
        )
