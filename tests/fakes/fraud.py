"""A stand-in for fraud.v1.FraudService that says what it is told to say."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from services.rpc.revocations import Revocations
from services.rpc.server import Registration, Server
from tallystick.fraud.v1 import fraud_service_pb2 as pb
from tallystick.fraud.v1 import fraud_service_pb2_grpc

ALLOW = pb.Assessment.DECISION_ALLOW
REVIEW = pb.Assessment.DECISION_REVIEW
DECLINE = pb.Assessment.DECISION_DECLINE


class FraudFake(fraud_service_pb2_grpc.FraudServiceServicer):
    """Lets everything pass until told otherwise.

    Attributes:
        asked: The facts of every payment asked about, in order.
        calls: How many payments each call asked about.
        judge: Facts to an assessment.
        answers: Cleared, it leaves every call waiting.
        failure: What it fails with instead of answering.
    """

    def __init__(self):
        self.asked = []
        self.calls = []
        self.judge = lambda facts: pb.Assessment(decision=ALLOW)
        self.answers = asyncio.Event()
        self.answers.set()
        self.failure = None

    def says(self, decision, *, score=0, signals=()):
        """Judge every payment the same."""
        signals = [pb.Signal(code=code) for code in signals]
        self.judge = lambda facts: pb.Assessment(decision=decision, score=score, signals=signals)

    async def AssessPayments(self, request, context):
        self.calls.append(len(request.payments))
        self.asked += request.payments
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        answer = pb.AssessPaymentsResponse()
        for facts in request.payments:
            assessment = answer.assessments.add()
            assessment.CopyFrom(self.judge(facts))
            assessment.payment = assessment.payment or facts.payment
        return answer


@asynccontextmanager
async def serving_fraud(tls):
    """(the fake, its address), over mutual TLS as the fraud service."""
    fake = FraudFake()
    registration = Registration(
        pb.DESCRIPTOR.services_by_name["FraudService"],
        fraud_service_pb2_grpc.add_FraudServiceServicer_to_server,
        fake,
    )
    server = Server("fraud", "127.0.0.1:0", tls, [registration], Revocations())
    port = await server.start()
    try:
        yield fake, f"127.0.0.1:{port}"
    finally:
        await server.stop(notice_seconds=0, grace_seconds=0)
