"""A stand-in for what other services ask of the user service: accounts, terminals and revocations."""

from __future__ import annotations

from contextlib import asynccontextmanager

from services.rpc.revocations import Revocations
from services.rpc.server import Registration, Server
from tallystick.access.v1 import access_pb2
from tallystick.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    party_service_pb2,
    party_service_pb2_grpc,
    terminal_service_pb2,
    terminal_service_pb2_grpc,
    user_pb2,
)
from tests.fakes.parties import PartiesFake


class UserFake(
    PartiesFake,
    auth_service_pb2_grpc.AuthServiceServicer,
    terminal_service_pb2_grpc.TerminalServiceServicer,
):
    """Knows the accounts and terminals it is told of, and whose tokens are revoked.

    Attributes:
        revoked: By subject, from when: datetimes.
        terminals: By name.
    """

    def __init__(self):
        super().__init__()
        self.revoked = {}
        self.terminals = {}

    async def BatchGetTerminals(self, request, context):
        found = [self.terminals[name] for name in request.names if name in self.terminals]
        return terminal_service_pb2.BatchGetTerminalsResponse(terminals=found)

    def knows(self, user):
        """Answer with an account from now on."""
        self.parties[user.name] = party_service_pb2.Party(user=user)

    async def ListRevocations(self, request, context):
        answer = auth_service_pb2.ListRevocationsResponse()
        for subject, revoke_time in self.revoked.items():
            answer.revocations.add(subject=subject).revoke_time.FromDatetime(revoke_time)
        return answer


def an_account(name, *, role=access_pb2.ROLE_USER, state=user_pb2.User.STATE_ACTIVE, version=1):
    """An account as the user service describes it."""
    return user_pb2.User(name=name, role=role, state=state, version=version)


@asynccontextmanager
async def serving_user(tls):
    """(the fake, its address), over mutual TLS as the user service."""
    fake = UserFake()
    registrations = [
        Registration(
            party_service_pb2.DESCRIPTOR.services_by_name["PartyService"],
            party_service_pb2_grpc.add_PartyServiceServicer_to_server,
            fake,
        ),
        Registration(
            auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
            auth_service_pb2_grpc.add_AuthServiceServicer_to_server,
            fake,
        ),
    ]
    registrations.append(
        Registration(
            terminal_service_pb2.DESCRIPTOR.services_by_name["TerminalService"],
            terminal_service_pb2_grpc.add_TerminalServiceServicer_to_server,
            fake,
        )
    )
    server = Server("user", "127.0.0.1:0", tls, registrations, Revocations())
    port = await server.start()
    try:
        yield fake, f"127.0.0.1:{port}"
    finally:
        await server.stop(notice_seconds=0, grace_seconds=0)
