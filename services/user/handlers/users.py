"""Registration and the life of an account."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import names, paging, sql
from services.refusal import Refusal
from services.rpc import identity
from services.rpc import refusals as access_refusals
from services.rpc.revocations import Revocations
from services.rpc.server import Context
from services.user import events, messages
from services.user.domain import lockout, refusals
from services.user.domain import password as password_rules
from services.user.domain import user as users
from services.user.domain.site import Site
from services.user.domain.user import User
from services.user.events import Change, Circumstances
from services.user.handlers import answers
from services.user.handlers.recorder import Recorder
from services.user.handlers.registration import Newcomer, Registrar
from services.user.messages import site_messages, user_message
from services.user.passwords import Passwords
from services.user.store import sessions as session_store
from services.user.store import users as user_store
from services.user.store.users import Credential
from tallystick.user.v1 import user_pb2, user_service_pb2_grpc
from tallystick.user.v1 import user_service_pb2 as pb

_ID_BYTES = 16


class UserService(user_service_pb2_grpc.UserServiceServicer):
    """UserService.

    Args:
        recorder: Transactions.
        passwords: Verifies and hashes.
        common: The commonest passwords.
        revocations: This process's own; told at once, the others learn from the stream.
    """

    def __init__(
        self,
        recorder: Recorder,
        passwords: Passwords,
        common: frozenset[str],
        revocations: Revocations,
    ) -> None:
        self._recorder = recorder
        self._passwords = passwords
        self._common = common
        self._revocations = revocations
        self._registrar = Registrar(recorder, passwords, common)

    async def RegisterUser(
        self, request: pb.RegisterUserRequest, context: Context
    ) -> pb.RegisterUserResponse:
        def newcomer() -> Newcomer:
            now = self._recorder.now()
            role = messages.role(request.role)
            assert role is not None
            user = users.register(
                self._recorder.new_id(),
                request.username.lower(),
                request.display_name,
                role,
                has_site=request.HasField("site"),
                now=now,
            )
            site = self._site(user, request.site) if request.HasField("site") else None
            answer = pb.RegisterUserResponse(
                user=user_message(user),
                site=messages.site_message(site) if site is not None else None,
            )
            return Newcomer(user, site, names.user_name(user.user_id), answer)

        answer = await self._registrar.register(answers.ANYBODY, request, newcomer)
        return pb.RegisterUserResponse.FromString(answer)

    async def CreateAdmin(
        self, request: pb.CreateAdminRequest, context: Context
    ) -> pb.CreateAdminResponse:
        caller = identity.caller()

        def newcomer() -> Newcomer:
            user = users.create_admin(
                self._recorder.new_id(),
                request.username.lower(),
                request.display_name,
                now=self._recorder.now(),
            )
            answer = pb.CreateAdminResponse(user=user_message(user))
            return Newcomer(user, None, caller.subject, answer)

        answer = await self._registrar.register(caller.user_id, request, newcomer)
        return pb.CreateAdminResponse.FromString(answer)

    async def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.GetUserResponse:
        caller = identity.caller()
        user_id = names.last_id(request.name)
        if not caller.is_admin and caller.user_id != user_id:
            raise refusals.user_not_found(request.name)

        async def work(connection: AsyncConnection) -> pb.GetUserResponse:
            user = await user_store.find_user(connection, user_id)
            if user is None:
                raise refusals.user_not_found(request.name)
            sites = await user_store.list_sites(connection, user_id)
            return pb.GetUserResponse(user=user_message(user), sites=site_messages(sites))

        return await self._recorder.read(work)

    async def ListUsers(
        self, request: pb.ListUsersRequest, context: Context
    ) -> pb.ListUsersResponse:
        query = ("users", request.state, request.role, request.tier)
        before = None
        if request.page_token:
            before = page_position(request.page_token, *query)
        size = paging.page_size(request.page_size)
        role = messages.role(request.role)
        if request.role and role is None:  # terminals and the like have no accounts here
            return pb.ListUsersResponse()
        found = await self._recorder.read(
            lambda connection: user_store.list_users(
                connection,
                before=before,
                limit=size + 1,
                state=messages.state(request.state),
                role=role,
                tier=messages.tier(request.tier),
            )
        )
        page = found[:size]
        return pb.ListUsersResponse(
            users=[user_message(user) for user in page],
            next_page_token=paging.issue(page[-1].user_id.bytes, *query)
            if len(found) > size
            else "",
        )

    async def ApproveUser(
        self, request: pb.ApproveUserRequest, context: Context
    ) -> pb.ApproveUserResponse:
        user = await self._move(
            request.name,
            _actor(request.actor),
            Change.CHANGE_APPROVED,
            lambda user, now: users.approve(user, request.reason, now=now),
        )
        return pb.ApproveUserResponse(user=user)

    async def RejectUser(
        self, request: pb.RejectUserRequest, context: Context
    ) -> pb.RejectUserResponse:
        user = await self._move(
            request.name,
            _actor(request.actor),
            Change.CHANGE_REJECTED,
            lambda user, now: users.reject(user, request.reason, now=now),
        )
        return pb.RejectUserResponse(user=user)

    async def ReinstateUser(
        self, request: pb.ReinstateUserRequest, context: Context
    ) -> pb.ReinstateUserResponse:
        user = await self._move(
            request.name,
            identity.caller().subject,
            Change.CHANGE_REINSTATED,
            lambda user, now: users.reinstate(user, request.reason, now=now),
        )
        return pb.ReinstateUserResponse(user=user)

    async def ChangeTier(
        self, request: pb.ChangeTierRequest, context: Context
    ) -> pb.ChangeTierResponse:
        tier = messages.tier(request.tier)
        assert tier is not None
        user = await self._move(
            request.name,
            identity.caller().subject,
            Change.CHANGE_TIER,
            lambda user, now: users.change_tier(
                user, tier, request.reason, version=request.version, now=now
            ),
        )
        return pb.ChangeTierResponse(user=user)

    async def SuspendUser(
        self, request: pb.SuspendUserRequest, context: Context
    ) -> pb.SuspendUserResponse:
        caller = identity.caller()
        user_id = names.last_id(request.name)

        async def work(connection: AsyncConnection) -> tuple[User, datetime]:
            # Both rows, in id order. Two admins who suspend each other at the same moment would otherwise both
            # succeed, and nobody could reinstate anybody.
            locked = {
                one: await user_store.lock_user(connection, one)
                for one in sorted({caller.user_id, user_id})
            }
            admin, user = locked[caller.user_id], locked[user_id]
            if admin is None or admin.state is not users.State.ACTIVE:
                raise access_refusals.token_revoked()
            if user is None:
                raise refusals.user_not_found(request.name)
            now = self._recorder.now()
            user = users.suspend(user, request.reason, by=caller.user_id, now=now)
            await user_store.update_user(connection, user)
            await self._revoke(
                connection, user, Circumstances(caller.subject, now), Change.CHANGE_SUSPENDED
            )
            return user, now

        user, now = await self._recorder.change(work)
        self._revocations.revoke(request.name, sql.micros(now))
        return pb.SuspendUserResponse(user=user_message(user))

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, context: Context
    ) -> pb.ChangePasswordResponse:
        """As a sign-in: look, verify outside of any transaction, decide under the locks."""
        caller = identity.caller()

        async def look_up(connection: AsyncConnection) -> Credential:
            user = await user_store.find_user(connection, caller.user_id)
            if user is None:
                raise access_refusals.unauthenticated()
            attempts = await user_store.find_attempts(connection, user.username)
            lockout.check(attempts, now=self._recorder.now())
            return await user_store.find_credential_of(connection, user.user_id)

        while True:
            credential = await self._recorder.transact(look_up)
            right = await self._passwords.verify(credential.password_hash, request.current_password)
            new_hash = await self._passwords.hash(request.new_password) if right else None
            outcome = await self._replace_password(
                caller, request.new_password, credential, new_hash
            )
            if isinstance(outcome, Refusal):
                raise outcome
            if outcome is not None:
                self._revocations.revoke(caller.subject, sql.micros(outcome))
                return pb.ChangePasswordResponse()
            # The stored hash was replaced while this one was verified: look again.

    async def _replace_password(
        self, caller: identity.Caller, password: str, verified: Credential, new_hash: str | None
    ) -> datetime | Refusal | None:
        """When it was replaced, why not, or None when `verified` is not the one on record any more."""

        async def work(connection: AsyncConnection) -> datetime | Refusal | None:
            known = await user_store.find_user(connection, verified.user_id)
            assert known is not None
            now = self._recorder.now()
            attempts = await user_store.find_attempts(connection, known.username)
            lockout.check(attempts, now=now)
            if new_hash is None:
                counted = lockout.count_wrong(attempts, now=now)
                await user_store.save_attempts(
                    connection, known.username, counted, known=attempts is not None
                )
                return refusals.credentials_wrong()  # raised once the count is committed
            user = await user_store.lock_user(connection, verified.user_id)
            assert user is not None
            password_rules.check(password, user.username, self._common)
            if not await user_store.replace_password_hash(connection, verified, new_hash, now):
                return None
            if attempts is not None:
                await user_store.forget_attempts(connection, user.username)
            user = users.renew(user, now=now)
            await user_store.update_user(connection, user)
            await self._revoke(
                connection,
                user,
                Circumstances(caller.subject, now),
                Change.CHANGE_PASSWORD,
                but=UUID(caller.session) if caller.session else None,
            )
            return now

        return await self._recorder.change(work)

    async def _revoke(
        self,
        connection: AsyncConnection,
        user: User,
        circumstances: Circumstances,
        change: Change.ValueType,
        *,
        but: UUID | None = None,
    ) -> None:
        """End a person's sessions except one, revoke all access tokens, and record why."""
        now = circumstances.now
        await session_store.end_sessions(connection, user.user_id, but=but, now=now)
        await session_store.save_revocation(connection, user.user_id, revoke_time=now)
        await self._recorder.record(
            connection,
            await self._recorder.user_changed(connection, circumstances, change, user),
            events.tokens_revoked(
                self._recorder.new_id(),
                circumstances,
                names.user_name(user.user_id),
                issued_before=now,
            ),
        )

    async def _move(
        self,
        name: str,
        actor: str,
        change: Change.ValueType,
        verb: Callable[[User, datetime], User],
    ) -> user_pb2.User:
        """Apply a verb to an account; a verb that changes nothing records nothing."""

        async def work(connection: AsyncConnection) -> User:
            before = await user_store.lock_user(connection, names.last_id(name))
            if before is None:
                raise refusals.user_not_found(name)
            now = self._recorder.now()
            user = verb(before, now)
            if user != before:
                await user_store.update_user(connection, user)
                fact = await self._recorder.user_changed(
                    connection, Circumstances(actor, now), change, user
                )
                await self._recorder.record(connection, fact)
            return user

        return user_message(await self._recorder.change(work))

    def _site(self, vendor: User, message: user_pb2.Site) -> Site:
        return Site(
            vendor.user_id,
            self._recorder.new_id(),
            message.display_name,
            messages.position(message.position),
            is_open=True,
            create_time=vendor.create_time,
        )


def page_position(token: str, *query: object) -> UUID:
    """The id a page starts behind.

    Raises:
        Refusal: page_token_invalid.
    """
    position = paging.redeem(token, *query)
    if len(position) != _ID_BYTES:
        raise access_refusals.page_token_invalid()
    return UUID(bytes=position)


def _actor(asked_for: str) -> str:
    """Who decided: a person with a token themself, or the admin on whose behalf a service calls."""
    caller = identity.caller()
    return (asked_for or caller.subject) if caller.service else caller.subject
