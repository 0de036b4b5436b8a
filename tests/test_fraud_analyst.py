"""An analyst's work through a whole running stack: Envoy lets only admins try rules and models on what was paid."""

from __future__ import annotations

import shutil

from grpc import StatusCode

from services.fraud.model.scorer import SHIPPED
from tallystick.fraud.v1 import rule_service_pb2 as rules_pb
from tests.gateway import until
from tests.outsider import PAY, outsider_of_a_stack

RULES = "/tallystick.fraud.v1.RuleService/"
PAYMENTS = 3


def test_rules_and_models_are_tried_on_what_was_paid(tmp_path, monkeypatch):
    drafts = tmp_path / "drafts"
    shutil.copytree(SHIPPED, drafts / "2026-12")
    monkeypatch.setenv("TALLYSTICK_MODEL_DRAFTS_DIR", str(drafts))
    rule = rules_pb.Rule(
        name="FROM_TWO",
        expression="amount >= 200.0",
        action=rules_pb.Rule.ACTION_REVIEW,
        mode=rules_pb.Rule.MODE_SHADOW,
        detail="two and more",
    )
    to_try = {
        "BacktestRule": rules_pb.BacktestRuleRequest(rule=rule),
        "BacktestModel": rules_pb.BacktestModelRequest(model="2026-12"),
    }
    answers = {
        "BacktestRule": rules_pb.BacktestRuleResponse,
        "BacktestModel": rules_pb.BacktestModelResponse,
    }
    with outsider_of_a_stack(tmp_path) as outside:
        for units in range(1, PAYMENTS + 1):
            outside.call(PAY, outside.a_payment(units * 1_00), outside.payers[0].token)

        def tried(rpc):
            answer = outside.call(RULES + rpc, to_try[rpc], outside.admin.token)
            return answers[rpc].FromString(answer)

        # Assessments are written a moment after they were answered.
        until(lambda: tried("BacktestRule").tried.payments == PAYMENTS)
        rule_says, model_says = tried("BacktestRule"), tried("BacktestModel")
        refusals = {
            (rpc, person.name): outside.ask(RULES + rpc, to_try[rpc], person.token).code
            for rpc in to_try
            for person in (outside.payers[0], outside.vendor)
        }

    assert set(refusals.values()) == {StatusCode.PERMISSION_DENIED}
    assert rule_says.matched.payments == PAYMENTS - 1
    assert model_says.model_version.startswith("gbt-")
    # It is the model that judged them: nothing would change.
    assert (model_says.tried.payments, len(model_says.changes)) == (PAYMENTS, 0)
