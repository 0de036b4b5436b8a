"""Putting a new account on record once, however often it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import UUID

from services import names, times
from services.user.domain import password as password_rules
from services.user.domain import refusals
from services.user.domain.site import Site
from services.user.domain.user import User
from services.user.events import Change, Circumstances
from services.user.handlers import answers
from services.user.handlers.recorder import Recorder
from services.user.passwords import Passwords
from services.user.store import requests as request_store
from services.user.store import users as user_store
from services.user.store.requests import Answered
from tallystick.user.v1 import user_service_pb2 as pb

Request = pb.RegisterUserRequest | pb.CreateAdminRequest


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A new account, not on record yet.

    Attributes:
        user: The account.
        site: A vendor's first site.
        actor: Who asked for it.
        answer: The response to the request.
    """

    user: User
    site: Site | None
    actor: str
    answer: Message


class Registrar:
    """Registers newcomers.

    Args:
        recorder: Transactions.
        passwords: Hashes.
        common: The commonest passwords.
    """

    def __init__(self, recorder: Recorder, passwords: Passwords, common: frozenset[str]) -> None:
        self._recorder = recorder
        self._passwords = passwords
        self._common = common

    async def register(self, caller: UUID, request: Request, make: Callable[[], Newcomer]) -> bytes:
        """Put an account on record; answers the serialized response, the first one when asked again.

        Args:
            caller: Whose request ids these are.
            request: With its password; hashed outside of any transaction, because it takes some 20 ms.
            make: The account asked for; raises site_required.

        Raises:
            Refusal: request_id_reused, password_too_common, site_required, username_taken; in this order.
        """
        key = answers.request_key(caller, request.request_id)
        body_hash = answers.body_hash(request, without="password")
        password_hash = None
        newcomer = None
        while True:
            earlier = await self._recorder.transact(
                lambda connection: request_store.find_answer(connection, key)
            )
            if earlier is not None:
                return await self._replay(request, body_hash, earlier)
            if newcomer is None or password_hash is None:
                password_rules.check(request.password, request.username.lower(), self._common)
                newcomer = make()
                password_hash = await self._passwords.hash(request.password)
            answered = Answered(body_hash, newcomer.answer.SerializeToString())
            if await self._insert(key, newcomer, password_hash, answered):
                return answered.answer
            # The same request was faster: answer as it was answered.

    async def _replay(self, request: Request, body_hash: bytes, earlier: Answered) -> bytes:
        # Both responses hold the account in field 1, so either reads it.
        user = pb.CreateAdminResponse.FromString(earlier.answer).user
        same = earlier.body_hash == body_hash
        if same:
            credential = await self._recorder.transact(
                lambda connection: user_store.find_credential_of(
                    connection, names.last_id(user.name)
                )
            )
            # The password is no part of the hash: a fast hash of it would be easier to guess from than the slow
            # one. Once it was changed, the one registered with is not known any more.
            changed = credential.change_time > times.instant(user.create_time)
            same = changed or await self._passwords.verify(
                credential.password_hash, request.password
            )
        if not same:
            raise refusals.request_id_reused(request.request_id)
        return earlier.answer

    async def _insert(
        self, key: bytes, newcomer: Newcomer, password_hash: str, answered: Answered
    ) -> bool:
        """False when the request has been answered meanwhile."""
        user = newcomer.user

        async def work(connection: AsyncConnection) -> bool:
            # Before the username: the faster copy of this request has taken it.
            if await request_store.find_answer(connection, key) is not None:
                return False
            if await user_store.username_exists(connection, user.username):
                raise refusals.username_taken(user.username)
            # Two at once see neither; the second insert fails, and the transaction runs again and sees.
            await request_store.save_answer(connection, key, answered)
            await user_store.insert_user(connection, user, password_hash)
            if newcomer.site is not None:
                await user_store.insert_site(connection, newcomer.site)
            fact = await self._recorder.user_changed(
                connection,
                Circumstances(newcomer.actor, user.create_time),
                Change.CHANGE_REGISTERED,
                user,
            )
            await self._recorder.record(connection, fact)
            return True

        return await self._recorder.change(work)
