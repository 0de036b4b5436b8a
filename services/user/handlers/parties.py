"""What other services may know of an account."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from services import names
from services.rpc.server import Context
from services.user.handlers.recorder import Recorder
from services.user.messages import site_messages, user_message
from services.user.store import users as user_store
from tallystick.user.v1 import party_service_pb2 as pb
from tallystick.user.v1 import party_service_pb2_grpc


class PartyService(party_service_pb2_grpc.PartyServiceServicer):
    """PartyService.

    Args:
        recorder: Transactions.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def BatchGetParties(
        self, request: pb.BatchGetPartiesRequest, context: Context
    ) -> pb.BatchGetPartiesResponse:
        user_ids = {names.last_id(name) for name in request.names}

        async def work(connection: AsyncConnection) -> pb.BatchGetPartiesResponse:
            users = await user_store.find_users(connection, user_ids)
            sites = await user_store.sites_of(connection, user_ids)
            return pb.BatchGetPartiesResponse(
                parties=[
                    pb.Party(
                        user=user_message(user),
                        sites=site_messages(sites.get(user.user_id, ())),
                    )
                    for user in users
                ]
            )

        return await self._recorder.read(work)
