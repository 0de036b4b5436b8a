"""A stand-in for what services ask the user service: parties and revocations."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from services.rpc.revocations import Revocations
from services.rpc.server import Registration, Server
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    party_service_pb2,
    party_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)


class PartiesFake(party_service_pb2_grpc.PartyServiceServicer):
    """Knows the parties it is told of; unknown names are left out.

    Attributes:
        parties: By the user's name.
        asked: The names of every call.
        delay_seconds: How long it thinks.
    """

    def __init__(self):
        self.parties = {}
        self.asked = []
        self.delay_seconds = 0.0

    async def BatchGetParties(self, request, context):
        self.asked.append(sorted(request.names))
        await asyncio.sleep(self.delay_seconds)
        found = [self.parties[name] for name in request.names if name in self.parties]
        return party_service_pb2.BatchGetPartiesResponse(parties=found)


class AccountsFake(user_service_pb2_grpc.UserServiceServicer):
    """Lists the accounts on a tier, one a page, among the parties that a fake knows."""

    def __init__(self, parties):
        self._parties = parties

    async def ListUsers(self, request, context):
        found = sorted(
            (each.user for each in self._parties.values() if each.user.tier == request.tier),
            key=lambda user: user.name,
        )
        left = [user for user in found if user.name > request.page_token]
        token = left[0].name if len(left) > 1 else ""
        return user_service_pb2.ListUsersResponse(users=left[:1], next_page_token=token)


class RevocationsFake(auth_service_pb2_grpc.AuthServiceServicer):
    """Nobody's tokens were revoked."""

    async def ListRevocations(self, request, context):
        return auth_service_pb2.ListRevocationsResponse()


@asynccontextmanager
async def serving_parties(tls):
    """(the fake, its address), over mutual TLS as the user service."""
    fake = PartiesFake()
    registrations = [
        Registration(
            party_service_pb2.DESCRIPTOR.services_by_name["PartyService"],
            party_service_pb2_grpc.add_PartyServiceServicer_to_server,
            fake,
        ),
        Registration(
            user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
            user_service_pb2_grpc.add_UserServiceServicer_to_server,
            AccountsFake(fake.parties),
        ),
        Registration(
            auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
            auth_service_pb2_grpc.add_AuthServiceServicer_to_server,
            RevocationsFake(),
        ),
    ]
    server = Server("user", "127.0.0.1:0", tls, registrations, Revocations())
    port = await server.start()
    try:
        yield fake, f"127.0.0.1:{port}"
    finally:
        await server.stop(notice_seconds=0, grace_seconds=0)
