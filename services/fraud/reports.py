"""How often rules and model were right, from assessments kept."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from services import sql
from services.fraud import outcomes
from services.fraud.store import assessments
from tallystick.fraud.v1 import fraud_service_pb2 as pb

_REASONED_MAX = 200_000


async def precision(engine: AsyncEngine, start: datetime, end: datetime) -> pb.GetPrecisionResponse:
    """How often reasons and the bands of the model's score were right."""
    said: dict[tuple[str, bool], pb.Outcomes] = defaultdict(pb.Outcomes)
    passed: dict[tuple[str, bool], pb.Outcomes] = defaultdict(pb.Outcomes)
    async for stored in outcomes.read(engine, start, end, _REASONED_MAX, signalled=True):
        record = pb.GetAssessmentResponse.FromString(stored.record)
        reasons = {(each.reason, False) for each in record.assessment.signals}
        reasons |= {(each.reason, True) for each in record.shadow_signals}
        for reason in reasons:
            outcomes.count(said[reason], stored.label)
            if record.assessment.decision == pb.Assessment.DECISION_ALLOW:
                outcomes.count(passed[reason], stored.label)
    answer = pb.GetPrecisionResponse(
        reasons=[
            pb.ReasonPrecision(reason=name, shadow=shadow, said=found, passed=passed[name, shadow])
            for (name, shadow), found in sorted(
                said.items(), key=lambda each: (-each[1].payments, each[0])
            )
        ]
    )
    async with sql.reading(engine) as connection:
        counted = await assessments.count_bands(connection, start, end)
    bands: dict[int, pb.Outcomes] = defaultdict(pb.Outcomes)
    for score, label, payments in counted:
        outcomes.count(bands[score // 10 * 10], label, payments)
    for first in sorted(bands):
        answer.bands.add(score_from=first, score_to=first + 10, outcomes=bands[first])
    return answer
