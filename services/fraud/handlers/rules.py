"""RuleService: rules, lists, and what a rule would have done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncEngine

from services import sql, times
from services.fraud.backtests import Backtests, Period
from services.fraud.books import Books
from services.fraud.domain import refusals
from services.fraud.domain import rules as domain
from services.fraud.domain.guard import Guard
from services.fraud.domain.language import COST_MAX_MICROSECONDS, CostError, ExpressionError
from services.fraud.domain.variables import VARIABLES
from services.fraud.handlers.assessments import period
from services.fraud.store import rules as store
from services.fraud.store.rules import Kept, Version
from services.rpc.identity import caller
from services.rpc.server import Context
from tallystick.fraud.v1 import rule_service_pb2 as pb
from tallystick.fraud.v1 import rule_service_pb2_grpc

_BACKTEST_DAYS = 7
_BACKTEST_PAYMENTS = 20_000


@dataclass(frozen=True)
class Shelf:
    """What the handlers work with.

    Attributes:
        books: The rules.
        guard: Knows which rules it has stopped.
        backtests: Tries drafts.
        engine: For reads.
        now: The clock.
    """

    books: Books
    guard: Guard
    backtests: Backtests
    engine: AsyncEngine
    now: Callable[[], datetime]


class RuleHandlers(rule_service_pb2_grpc.RuleServiceServicer):
    """Serves fraud.v1.RuleService."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def ListRules(
        self, request: pb.ListRulesRequest, context: Context
    ) -> pb.ListRulesResponse:
        async with sql.reading(self._shelf.engine, snapshot=True) as connection:
            revision = await store.read_revision(connection)
            found = await store.read_rules(connection)
        stopped = self._shelf.guard.tripped()
        return pb.ListRulesResponse(
            rules=[
                pb.ListRulesResponse.State(rule=to_proto(each), guarded=each.rule.name in stopped)
                for each in found
            ],
            variables=[
                pb.Variable(name=each.name, type=each.type, unit=each.unit, meaning=each.meaning)
                for each in VARIABLES.values()
            ],
            revision=revision,
        )

    async def GetRule(self, request: pb.GetRuleRequest, context: Context) -> pb.GetRuleResponse:
        async with sql.reading(self._shelf.engine) as connection:
            found = await store.read_versions(connection, request.name)
        if not found:
            raise refusals.rule_not_found(request.name)
        return pb.GetRuleResponse(versions=[to_proto(each) for each in found])

    async def PutRule(self, request: pb.PutRuleRequest, context: Context) -> pb.PutRuleResponse:
        rule = _checked(request.rule)
        kept = await self._shelf.books.put_rule(rule, author=caller().subject)
        return pb.PutRuleResponse(rule=to_proto(kept))

    async def BacktestRule(
        self, request: pb.BacktestRuleRequest, context: Context
    ) -> pb.BacktestRuleResponse:
        return await self._shelf.backtests.rule(_checked(request.rule), self._period(request))

    async def BacktestModel(
        self, request: pb.BacktestModelRequest, context: Context
    ) -> pb.BacktestModelResponse:
        return await self._shelf.backtests.model(request.model, self._period(request))

    async def ListEntries(
        self, request: pb.ListEntriesRequest, context: Context
    ) -> pb.ListEntriesResponse:
        now = self._shelf.now()
        async with sql.reading(self._shelf.engine) as connection:
            entries = await store.read_entries(connection, now=now)
            suppressions = await store.read_suppressions(connection, now=now)
        return pb.ListEntriesResponse(
            entries=[_entry(each) for each in entries],
            suppressions=[_suppression(each) for each in suppressions],
        )

    async def PutEntry(self, request: pb.PutEntryRequest, context: Context) -> pb.PutEntryResponse:
        said = request.entry
        entry = domain.Entry(domain.List(said.list), said.entity, _seconds(said.expire_time))
        kept = Kept(entry, said.reason, caller().subject)
        await self._shelf.books.put_entry(kept)
        return pb.PutEntryResponse(entry=_entry(kept))

    async def SuppressRule(
        self, request: pb.SuppressRuleRequest, context: Context
    ) -> pb.SuppressRuleResponse:
        said = request.suppression
        what = domain.Suppression(said.rule, said.entity, _seconds(said.expire_time))
        kept = Kept(what, said.reason, caller().subject)
        await self._shelf.books.suppress(kept)
        return pb.SuppressRuleResponse(suppression=_suppression(kept))

    def _period(self, request: pb.BacktestRuleRequest | pb.BacktestModelRequest) -> Period:
        start, end = period(request, self._shelf.now(), timedelta(days=_BACKTEST_DAYS))
        return Period(start, end, request.payments_max or _BACKTEST_PAYMENTS)


def to_proto(version: Version) -> pb.Rule:
    """A rule as analysts see it."""
    rule = version.rule
    message = pb.Rule(
        name=rule.name,
        expression=rule.expression,
        action=pb.Rule.Action.ValueType(rule.action),
        mode=pb.Rule.Mode.ValueType(rule.mode),
        # What allows or declines has a weight only inside.
        weight=rule.weight if rule.action >= domain.Action.REVIEW else 0,
        detail=rule.detail,
        version=rule.version,
        author=version.author,
    )
    message.create_time.CopyFrom(times.timestamp(version.create_time))
    return message


def _checked(said: pb.Rule) -> domain.Rule:
    """The rule that was asked for, which can be used.

    Raises:
        Refusal: rule_invalid, rule_too_costly.
    """
    action = domain.Action(said.action)
    try:
        rule = domain.Rule(
            name=said.name,
            expression=said.expression,
            action=action,
            mode=domain.Mode(said.mode),
            weight=domain.weight_of(action, said.weight),
            detail=said.detail,
            version=said.version,
        )
        domain.check(rule)
    except ExpressionError as error:
        raise refusals.rule_invalid(error.problem, error.line, error.column) from error
    except CostError as error:
        raise refusals.rule_too_costly(error.microseconds, COST_MAX_MICROSECONDS) from error
    return rule


def _entry(kept: Kept[domain.Entry]) -> pb.Entry:
    what = kept.what
    return pb.Entry(
        list=pb.Entry.List.ValueType(what.list),
        entity=what.entity,
        expire_time=_timestamp(what.expire_time),
        reason=kept.reason,
        author=kept.author,
    )


def _suppression(kept: Kept[domain.Suppression]) -> pb.Suppression:
    what = kept.what
    return pb.Suppression(
        rule=what.rule,
        entity=what.entity,
        expire_time=_timestamp(what.expire_time),
        reason=kept.reason,
        author=kept.author,
    )


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9


def _timestamp(seconds: float) -> Timestamp:
    whole, rest = divmod(round(seconds * 1e6), 1_000_000)
    return Timestamp(seconds=whole, nanos=rest * 1_000)
