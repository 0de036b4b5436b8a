"""Sign-in, sessions, key set, revocations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

from opentelemetry import metrics
from sqlalchemy.ext.asyncio import AsyncConnection

from services import names, times
from services.refusal import Refusal
from services.rpc import identity
from services.rpc.server import Context
from services.user import assertion as assertions
from services.user.domain import lockout, refusals
from services.user.domain import session as sessions
from services.user.domain import terminal as terminals
from services.user.domain import user as users
from services.user.domain.session import Session
from services.user.domain.user import User
from services.user.handlers.recorder import Recorder
from services.user.handlers.signing_keys import SigningKeys
from services.user.passwords import Passwords
from services.user.store import sessions as session_store
from services.user.store import terminals as terminal_store
from services.user.store import users as user_store
from services.user.store.users import Credential
from tallystick.user.v1 import auth_service_pb2 as pb
from tallystick.user.v1 import auth_service_pb2_grpc


class AuthService(auth_service_pb2_grpc.AuthServiceServicer):
    """AuthService.

    Args:
        recorder: Transactions.
        passwords: Verifies and hashes.
        keys: Signs.
        new_refresh_token: 32 fresh random bytes, base64url.
    """

    def __init__(
        self,
        recorder: Recorder,
        passwords: Passwords,
        keys: SigningKeys,
        *,
        new_refresh_token: Callable[[], str],
    ) -> None:
        self._recorder = recorder
        self._passwords = passwords
        self._keys = keys
        self._new_refresh_token = new_refresh_token
        self._sign_ins = metrics.get_meter("tallystick.user").create_counter(
            "tallystick.user.sign_ins", description="Sign-ins by outcome."
        )

    async def Login(self, request: pb.LoginRequest, context: Context) -> pb.LoginResponse:
        try:
            session = await self._sign_in(request.username, request.password)
        except Refusal as refusal:
            self._sign_ins.add(1, {"outcome": refusal.reason})
            raise
        self._sign_ins.add(1, {"outcome": "GRANTED"})
        return pb.LoginResponse(session=session)

    async def RefreshToken(
        self, request: pb.RefreshTokenRequest, context: Context
    ) -> pb.RefreshTokenResponse:
        token_hash = _token_hash(request.refresh_token)

        async def work(connection: AsyncConnection) -> pb.Session | Refusal:
            # Account, session, token: locked in the order in which a suspension locks them.
            found = await session_store.find_session_of_token(connection, token_hash)
            if found is None:
                raise refusals.refresh_token_unknown()
            user = await user_store.lock_user(connection, found.user_id)
            assert user is not None
            session = await session_store.lock_session(connection, found.session_id)
            token = await session_store.lock_refresh_token(connection, token_hash)
            if session is None or token is None:  # forgotten between the two looks
                raise refusals.refresh_token_unknown()
            now = self._recorder.now()
            if token.spent_time is not None:
                await session_store.end_session(connection, session.session_id, now=now)
                return refusals.refresh_token_reused()  # raised once the end is committed
            session = sessions.extend(session, now=now)
            users.check_may_sign_in(user)
            await session_store.spend_refresh_token(connection, token_hash, now=now)
            await session_store.extend_session(connection, session)
            return await self._grant(connection, user, session, now)

        outcome = await self._recorder.transact(work)
        if isinstance(outcome, Refusal):
            raise outcome
        return pb.RefreshTokenResponse(session=outcome)

    async def Logout(self, request: pb.LogoutRequest, context: Context) -> pb.LogoutResponse:
        token_hash = _token_hash(request.refresh_token)

        async def work(connection: AsyncConnection) -> None:
            session = await session_store.find_session_of_token(connection, token_hash)
            if session is not None:
                now = self._recorder.now()
                await session_store.end_session(connection, session.session_id, now=now)

        await self._recorder.transact(work)
        return pb.LogoutResponse()

    async def AuthenticateTerminal(
        self, request: pb.AuthenticateTerminalRequest, context: Context
    ) -> pb.AuthenticateTerminalResponse:
        """As a sign-in: look, verify outside of any transaction, decide under the lock.

        So who cannot sign for a terminal does not make its vendor's account wait.
        """
        vendor_id, terminal_id = assertions.claimed_by(request.assertion)
        known = await self._recorder.read(
            lambda connection: terminal_store.find_terminal(connection, vendor_id, terminal_id)
        )
        if known is None:
            raise refusals.assertion_invalid()
        assertion = assertions.verify(request.assertion, known.public_key)

        async def work(connection: AsyncConnection) -> pb.AuthenticateTerminalResponse:
            # The vendor's lock: who is suspended meanwhile has its terminals' tokens revoked after this one is made.
            vendor = await user_store.lock_user(connection, vendor_id)
            terminal = await terminal_store.find_terminal(connection, vendor_id, terminal_id)
            assert vendor is not None  # Neither is ever removed.
            assert terminal is not None
            now = self._recorder.now()
            terminals.check_assertion_time(assertion.issue_time, assertion.expire_time, now=now)
            if await terminal_store.is_assertion_used(
                connection, terminal_id, assertion.assertion_id
            ):
                raise refusals.assertion_replayed()
            terminals.check_may_sign_in(terminal)
            terminals.check_vendor(vendor)
            await terminal_store.save_assertion(
                connection,
                terminal_id,
                assertion.assertion_id,
                expire_time=assertion.expire_time,
            )
            claims, expire_time = terminals.access_claims(
                terminal, self._recorder.new_id(), now=now
            )
            answer = pb.AuthenticateTerminalResponse(
                terminal=terminal.name,
                access_token=await self._keys.sign(connection, claims, now=now),
            )
            answer.access_expire_time.CopyFrom(times.timestamp(expire_time))
            answer.server_time.CopyFrom(times.timestamp(now))
            return answer

        return await self._recorder.transact(work)

    async def GetSigningKeys(
        self, request: pb.GetSigningKeysRequest, context: Context
    ) -> pb.GetSigningKeysResponse:
        return pb.GetSigningKeysResponse(json_web_key_set=await self._keys.key_set())

    async def RotateSigningKeys(
        self, request: pb.RotateSigningKeysRequest, context: Context
    ) -> pb.RotateSigningKeysResponse:
        key = await self._keys.rotate(identity.caller().subject)
        answer = pb.RotateSigningKeysResponse(key_id=key.key_id)
        answer.sign_time.CopyFrom(times.timestamp(key.sign_time))
        return answer

    async def ListRevocations(
        self, request: pb.ListRevocationsRequest, context: Context
    ) -> pb.ListRevocationsResponse:
        answer = pb.ListRevocationsResponse()
        for subject, revoke_time in await list_revocations(self._recorder):
            answer.revocations.add(subject=subject).revoke_time.CopyFrom(
                times.timestamp(revoke_time)
            )
        return answer

    async def _sign_in(self, typed: str, password: str) -> pb.Session:
        """1. Is the username locked? 2. Verify, outside of any transaction. 3. Decide, under the locks.

        Step 3 looks at the lock-out again and answers nothing about the password when it has begun meanwhile, so
        guesses sent all at once learn no more than guesses sent one by one.
        """
        counted_as = typed.lower()
        username = users.fold_username(typed)

        async def look_up(connection: AsyncConnection) -> Credential | None:
            attempts = await user_store.find_attempts(connection, counted_as)
            lockout.check(attempts, now=self._recorder.now())
            if username is None:
                return None
            return await user_store.find_credential(connection, username)

        while True:
            credential = await self._recorder.transact(look_up)
            stored = credential.password_hash if credential is not None else None
            right = await self._passwords.verify(stored, password)
            new_hash = (
                await self._passwords.hash(password)
                if right and stored is not None and self._passwords.is_outdated(stored)
                else None
            )
            outcome = await self._decide(counted_as, credential if right else None, new_hash)
            if isinstance(outcome, Refusal):
                raise outcome
            if outcome is not None:
                return outcome
            # The stored hash was replaced while this one was verified: look again.

    async def _decide(
        self, counted_as: str, verified: Credential | None, new_hash: str | None
    ) -> pb.Session | Refusal | None:
        async def work(connection: AsyncConnection) -> pb.Session | Refusal | None:
            now = self._recorder.now()
            attempts = await user_store.find_attempts(connection, counted_as)
            lockout.check(attempts, now=now)
            if verified is None:
                counted = lockout.count_wrong(attempts, now=now)
                await user_store.save_attempts(
                    connection, counted_as, counted, known=attempts is not None
                )
                return refusals.credentials_wrong()  # raised once the count is committed
            user = await user_store.lock_user(connection, verified.user_id)
            assert user is not None
            if await user_store.find_credential_of(connection, user.user_id) != verified:
                return None
            if attempts is not None:
                await user_store.forget_attempts(connection, counted_as)
            users.check_may_sign_in(user)
            if new_hash is not None:
                await user_store.replace_password_hash(
                    connection, verified, new_hash, verified.change_time
                )
            session = sessions.start(self._recorder.new_id(), user.user_id, now=now)
            await session_store.insert_session(connection, session)
            return await self._grant(connection, user, session, now)

        return await self._recorder.transact(work)

    async def _grant(
        self, connection: AsyncConnection, user: User, session: Session, now: datetime
    ) -> pb.Session:
        """The session's next pair of tokens."""
        refresh_token = self._new_refresh_token()
        await session_store.insert_refresh_token(
            connection, _token_hash(refresh_token), session.session_id
        )
        claims, access_expire_time = sessions.access_claims(
            user, session.session_id, self._recorder.new_id(), now=now
        )
        message = pb.Session(
            user=names.user_name(user.user_id),
            access_token=await self._keys.sign(connection, claims, now=now),
            refresh_token=refresh_token,
        )
        message.access_expire_time.CopyFrom(times.timestamp(access_expire_time))
        message.refresh_expire_time.CopyFrom(times.timestamp(session.expire_time))
        return message


async def list_revocations(recorder: Recorder) -> list[tuple[str, datetime]]:
    """Token subjects revoked of late, and when: as long ago as a token may still be alive."""
    after = recorder.now() - sessions.ACCESS_TOKEN_LIFE - sessions.CLOCKS_APART_MAX
    found = await recorder.read(
        lambda connection: session_store.list_revocations(connection, after=after)
    )
    revoked = await recorder.read(
        lambda connection: terminal_store.list_revoked(connection, after=after)
    )
    return [
        *((names.user_name(user_id), revoke_time) for user_id, revoke_time in found),
        *((name, terminals.tokens_end(revoke_time)) for name, revoke_time in revoked),
    ]


def _token_hash(token: str) -> bytes:
    # Fast on purpose: the token is 32 random bytes, so there is nothing to guess.
    return hashlib.sha256(token.encode()).digest()
