"""A wallet's tier through a whole running stack: Envoy, the ledger, the fraud checks, and who may change it."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from uuid_utils import uuid4

from tallystick.access.v1 import access_pb2
from tallystick.fraud.v1 import fraud_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, wallet_service_pb2
from tallystick.user.v1 import user_pb2, user_service_pb2
from tests.gateway import until
from tests.outsider import PAY, PAYMENTS, USERS, WALLETS, money, outsider_of_a_stack, wallet_of

FRAUD = "/tallystick.fraud.v1.FraudService/"
OVER_BASIC = 6_000_00


@pytest.fixture
def outside(tmp_path):
    # A stack of its own: where many known payers have paid before, the model may hold a stranger's large payment.
    with outsider_of_a_stack(tmp_path) as running:
        yield running


def pay(outside, payer, amount=OVER_BASIC):
    """A payment, over the lowest tier's limit unless said otherwise, once it has its outcome."""
    answer = outside.call(PAY, outside.a_payment(amount), payer.token)
    return payment_service_pb2.CreatePaymentResponse.FromString(answer).payment


def change_tier(outside, user, by):
    request = user_service_pb2.ChangeTierRequest(
        name=user.name, tier=user_pb2.User.TIER_PLUS, reason="passport seen", version=user.version
    )
    return outside.ask(USERS + "ChangeTier", request, by.token)


def tier_of(outside, payment):
    """The tier that a payment was judged on, once its assessment is on record."""
    request = fraud_service_pb2.GetAssessmentRequest(payment=payment.name)

    def kept():
        answer = outside.ask(FRAUD + "GetAssessment", request, outside.admin.token)
        return answer.messages

    return fraud_service_pb2.GetAssessmentResponse.FromString(until(kept)[0]).payer_tier


def user_of(outside, person):
    request = user_service_pb2.GetUserRequest(name=person.name)
    answer = outside.call(USERS + "GetUser", request, person.token)
    return user_service_pb2.GetUserResponse.FromString(answer).user


def test_after_an_admin_has_raised_a_payer_their_next_payment_is_not_held(outside):
    payer = outside.approved(access_pb2.ROLE_USER)
    top_up = wallet_service_pb2.TopUpRequest(
        request_id=str(uuid4()),
        wallet=wallet_of(payer),
        amount=money(10 * OVER_BASIC),
        reference="cash",
    )
    outside.call(WALLETS + "TopUp", top_up, outside.admin.token)
    user = user_of(outside, payer)

    held = pay(outside, payer)
    assert held.state == payment_pb2.Payment.STATE_FLAGGED
    assert list(held.risk.reasons) == ["AMOUNT_OVER_REVIEW_LIMIT"]
    # Envoy lets nobody but an admin through.
    for person in (payer, outside.vendor):
        assert change_tier(outside, user, person).code is StatusCode.PERMISSION_DENIED

    assert change_tier(outside, user, outside.admin).code is StatusCode.OK

    until(lambda: tier_of(outside, pay(outside, payer, 1_00)) == user_pb2.User.TIER_PLUS)
    assert pay(outside, payer).state == payment_pb2.Payment.STATE_SUCCESS
    assert user_of(outside, payer).tier == user_pb2.User.TIER_PLUS
    # What was held before stays held until a person has looked.
    request = payment_service_pb2.GetPaymentRequest(name=held.name)
    answer = outside.call(PAYMENTS + "GetPayment", request, payer.token)
    still = payment_service_pb2.GetPaymentResponse.FromString(answer).payment
    assert still.state == payment_pb2.Payment.STATE_FLAGGED
