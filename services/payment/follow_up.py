"""What is left to do for payments that were answered before they were settled or assessed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils import UUID

from services import names, sql
from services.payment import store, wire
from services.payment.clients import Fraud
from services.payment.domain.book import Task
from services.payment.domain.commands import RecordAssessment, SettlePending
from services.payment.domain.payment import Payment, Risk, Shown
from services.payment.group import Group
from services.refusal import Refusal

log = logging.getLogger(__name__)

_TURN_SECONDS = 1.0
# A task younger than this is in the hands of the process that made it.
_LEFT_BEHIND = timedelta(seconds=5)
_PAYMENTS_PER_TURN = 256


class FollowUp:
    """Settles PENDING payments and has degraded ones assessed, also those another process left behind."""

    def __init__(
        self,
        engine: AsyncEngine,
        group: Group,
        fraud: Fraud,
        *,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._engine = engine
        self._group = group
        self._fraud = fraud
        self._now = now
        self._new_id = new_id
        self._settling: set[asyncio.Task[None]] = set()

    def settle_soon(self, payment: Payment) -> None:
        """Settle a payment that has just been put on record."""
        task = asyncio.create_task(self._attempt(self.settle, payment))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def settle(self, payment: Payment) -> Payment:
        """Settle a payment that is on record; answers when it is committed. Settled already, it stays as it is.

        Raises:
            Refusal: overloaded.
        """
        command = SettlePending(
            payment_id=payment.payment_id,
            transfer_id=self._new_id(),
            payer=payment.payer,
            vendor=payment.vendor,
        )
        settled = await self._group.submit(command, wire.facts(payment))
        assert isinstance(settled, Payment)
        return settled

    async def run(self) -> None:
        """Look for what was left behind, until cancelled."""
        while True:
            try:
                await self._turn()
            except Exception as error:
                if not _is_away(error):
                    raise
                log.warning("follow-up waits", extra={"cause": repr(error)[:300]})
            await asyncio.sleep(_TURN_SECONDS)

    async def _turn(self) -> None:
        now = self._now()
        async with sql.reading(self._engine) as connection:
            left = await store.due_tasks(
                connection, Task.SETTLE, before=now - _LEFT_BEHIND, limit=_PAYMENTS_PER_TURN
            )
            unassessed = await store.due_tasks(
                connection, Task.ASSESS, before=now, limit=_PAYMENTS_PER_TURN
            )
            shown = await store.shown(connection, [each.payment_id for each in unassessed])
        await asyncio.gather(*(self._attempt(self.settle, payment) for payment in left))
        if unassessed:
            await self._assess(unassessed, shown)

    async def _assess(
        self, payments: Sequence[Payment], shown: Mapping[UUID, Shown | None]
    ) -> None:
        assessments = await self._fraud.assess(
            [wire.facts(payment, shown.get(payment.payment_id)) for payment in payments]
        )
        if assessments is None:
            return
        await asyncio.gather(
            *(
                self._attempt(partial(self._record, wire.risk(assessment)), payment)
                for payment, assessment in zip(payments, assessments, strict=True)
            )
        )

    async def _record(self, risk: Risk, payment: Payment) -> None:
        await self._group.submit(RecordAssessment(payment.payment_id, payment.payer, risk))

    async def _attempt(
        self, work: Callable[[Payment], Awaitable[object]], payment: Payment
    ) -> None:
        # What is wrong with one must stop neither the others nor the service; it stays on the list, and a later turn
        # finds it.
        try:
            await work(payment)
        except Exception as error:
            name = names.payment_name(payment.payment_id)
            if _is_away(error):
                log.warning("payment waits", extra={"payment": name, "cause": repr(error)[:300]})
            else:
                log.exception("payment is stuck", extra={"payment": name})


def _is_away(error: Exception) -> bool:
    return sql.is_lost(error) or sql.is_conflict(error) or isinstance(error, Refusal)
