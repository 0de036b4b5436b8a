"""The signing keys on record: added, read, forgotten, so that replicas agree."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from services.user import events
from services.user.domain import signing_key as rules
from services.user.domain.signing_key import SigningKey
from services.user.events import Circumstances
from services.user.handlers.recorder import Recorder
from services.user.signing import KeyRing, key_set
from services.user.store import signing_keys as key_store

log = logging.getLogger(__name__)


class SigningKeys:
    """The keys, read anew each time: a replica that remembered them would sign with an old one.

    Args:
        recorder: Transactions.
        key_ring: Seals and opens them.
        publish: How long a key is in the set before it signs; longer than gateways take to learn of it.
        age_max: When a key is replaced by itself.
    """

    def __init__(
        self, recorder: Recorder, key_ring: KeyRing, *, publish: timedelta, age_max: timedelta
    ) -> None:
        self._recorder = recorder
        self._key_ring = key_ring
        self._publish = publish
        self._age_max = age_max

    async def key_set(self) -> str:
        """The JSON Web Key Set that verifies tokens now."""
        keys = await self._recorder.read(key_store.list_keys)
        return key_set(rules.published(keys, now=self._recorder.now()))

    async def sign(
        self, connection: AsyncConnection, claims: dict[str, Any], *, now: datetime
    ) -> str:
        """A token signed with the key whose turn it is."""
        keys = await key_store.list_keys(connection)
        return self._key_ring.sign(rules.signing(keys, now=now), claims)

    async def rotate(self, actor: str) -> SigningKey:
        """Add a key, unless one waits for its turn already: then that one."""
        return await self._add(actor, always=True)

    async def keep(self) -> None:
        """Add a key when there is none or the newest is too old; forget those that verify nothing any more.

        Raises:
            SettingError: the key that signs was sealed with another key-encryption key.
        """
        newest = await self._add(events.ITSELF, always=False)
        self._key_ring.check_opens(newest)

        async def forget(connection: AsyncConnection) -> None:
            keys = await key_store.list_keys(connection)
            live = {key.number for key in rules.published(keys, now=self._recorder.now())}
            old = [key.number for key in keys if key.number not in live]
            if old:
                await key_store.delete_keys(connection, old)

        await self._recorder.transact(forget)

    async def _add(self, actor: str, *, always: bool) -> SigningKey:
        async def work(connection: AsyncConnection) -> SigningKey:
            # Two replicas may read the same keys and add the same number. The second insert fails, the
            # transaction runs again, and finds the first one's key waiting, or young.
            now = self._recorder.now()
            keys = await key_store.list_keys(connection)
            waiting = rules.waiting(keys, now=now)
            if waiting is not None:
                return waiting
            if not always and not rules.due(keys, age_max=self._age_max, now=now):
                return rules.signing(keys, now=now)
            key = self._key_ring.create(
                1 + max((key.number for key in keys), default=0),
                create_time=now,
                sign_time=rules.next_sign_time(keys, publish=self._publish, now=now),
            )
            await key_store.insert_key(connection, key)
            fact = events.signing_key_rotated(
                self._recorder.new_id(), Circumstances(actor, now), key
            )
            await self._recorder.record(connection, fact)
            log.info("signing key added", extra={"key_id": key.key_id, "number": key.number})
            return key

        return await self._recorder.change(work)
