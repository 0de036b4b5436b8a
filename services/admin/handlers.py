"""ReviewService: requests to the desk and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncEngine

from services import names, paging, sql, times
from services.admin import store
from services.admin.desk import Desk
from services.admin.domain import refusals
from services.admin.domain.case import Case, Decision, Kind, State
from services.rpc.identity import caller
from services.rpc.server import Context
from services.streams import Feed
from tallystick.admin.v1 import review_service_pb2 as pb
from tallystick.admin.v1 import review_service_pb2_grpc
from tallystick.event.v1 import event_pb2

_CLOSED = {State.APPROVED, State.REJECTED, State.SETTLED}


class ReviewHandlers(review_service_pb2_grpc.ReviewServiceServicer):
    """Serves admin.v1.ReviewService.

    Args:
        engine: The admin database.
        desk: Moves cases.
        feed: This service's own events, live.
    """

    def __init__(self, engine: AsyncEngine, desk: Desk, feed: Feed) -> None:
        self._engine = engine
        self._desk = desk
        self._feed = feed

    async def ListCases(
        self, request: pb.ListCasesRequest, context: Context
    ) -> pb.ListCasesResponse:
        query = (int(request.kind), int(request.state))
        before = paging.redeem_id(request.page_token, *query) if request.page_token else None
        size = paging.page_size(request.page_size)
        async with sql.reading(self._engine) as connection:
            found = await store.list_cases(
                connection,
                kind=Kind(request.kind) if request.kind else None,
                state=State(request.state) if request.state else None,
                before=before,
                limit=size + 1,
            )
        page = found[:size]
        token = paging.issue(page[-1].case_id.bytes, *query) if len(found) > size else ""
        return pb.ListCasesResponse(cases=[to_proto(case) for case in page], next_page_token=token)

    async def GetCase(self, request: pb.GetCaseRequest, context: Context) -> pb.GetCaseResponse:
        case_id = names.last_id(request.name)
        async with sql.reading(self._engine) as connection:
            case = await store.find_case(connection, case_id)
        if case is None:
            raise refusals.case_not_found(request.name)
        return pb.GetCaseResponse(case=to_proto(case))

    async def DecideCase(
        self, request: pb.DecideCaseRequest, context: Context
    ) -> pb.DecideCaseResponse:
        case = await self._desk.decide(
            names.last_id(request.name),
            Decision(request.decision),
            caller().user_id,
            request.reason,
        )
        return pb.DecideCaseResponse(case=to_proto(case))

    async def WatchCases(
        self, request: pb.WatchCasesRequest, context: Context
    ) -> AsyncIterator[pb.WatchCasesResponse]:
        async for cursor, event in self._feed.watch(request.cursor, _about_case):
            if event is None:
                yield pb.WatchCasesResponse(cursor=cursor)
                continue
            case_id = names.last_id(event.subject)
            async with sql.reading(self._engine) as connection:
                case = await store.find_case(connection, case_id)
            assert case is not None  # cases are never deleted
            yield pb.WatchCasesResponse(case=to_proto(case), cursor=cursor)


def _about_case(event: event_pb2.Event) -> bool:
    return event.WhichOneof("fact") in {"case_opened", "case_closed"}


def to_proto(case: Case) -> pb.Case:
    """A case as callers see it."""
    message = pb.Case(
        name=names.case_name(case.case_id),
        kind=pb.Case.Kind.ValueType(case.kind),
        state=pb.Case.State.ValueType(case.state),
        decider=case.decider,
        reason=case.reason,
    )
    if case.kind is Kind.REGISTRATION:
        message.user.ParseFromString(case.subject)
    else:
        message.payment.ParseFromString(case.subject)
    _put(message.create_time, case.create_time)
    if case.state in _CLOSED:
        _put(message.decide_time, case.decide_time)
    return message


def _put(field: Timestamp, time: datetime | None) -> None:
    if time is not None:
        field.CopyFrom(times.timestamp(time))
