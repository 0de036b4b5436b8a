"""What has to be done now and then: signing keys grow old, and rows stop mattering."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from services import sql
from services.user.domain import lockout
from services.user.domain import session as sessions
from services.user.domain import terminal as terminals
from services.user.handlers.recorder import Recorder
from services.user.handlers.signing_keys import SigningKeys
from services.user.store import upkeep as upkeep_store

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 3600.0
_RETRY_SECONDS = 10.0
# A session that expired is answered SESSION_ENDED for so long, then REFRESH_TOKEN_UNKNOWN.
_EXPIRED_KEPT = timedelta(days=1)
_REVOCATIONS_KEPT = timedelta(hours=1)


async def keep_up(recorder: Recorder, keys: SigningKeys) -> None:
    """Look after keys and rows every hour, until cancelled. Several replicas may do it at once."""
    while True:
        delay = _INTERVAL_SECONDS
        try:
            await keys.keep()
            await clean(recorder)
        except Exception as error:
            if not (sql.is_lost(error) or sql.is_conflict(error)):
                raise
            log.warning("upkeep waits", extra={"cause": repr(error)[:300]})
            delay = _RETRY_SECONDS
        await asyncio.sleep(delay)


async def clean(recorder: Recorder) -> None:
    """Remove what no answer depends on any more, in small transactions."""
    now = recorder.now()
    tasks: list[Callable[[AsyncConnection], Awaitable[int]]] = [
        lambda connection: upkeep_store.delete_sessions(
            connection, expired_before=now - _EXPIRED_KEPT
        ),
        lambda connection: upkeep_store.delete_spent_tokens(
            connection, spent_before=now - sessions.SPENT_TOKEN_MEMORY
        ),
        lambda connection: upkeep_store.delete_attempts(
            connection, last_before=now - lockout.MEMORY
        ),
        lambda connection: upkeep_store.delete_revocations(
            connection, revoked_before=now - _REVOCATIONS_KEPT
        ),
        lambda connection: upkeep_store.delete_assertions(
            connection, expired_before=now - 2 * terminals.CLOCK_TOLERANCE
        ),
    ]
    for task in tasks:
        while await recorder.transact(task):
            pass
