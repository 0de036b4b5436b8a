"""Keeps wallets in step with what the user service says of their owners."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from uuid_utils import UUID

from services.payment import events
from services.payment.clients import Parties
from services.payment.domain.book import Outcome
from services.payment.domain.commands import Command
from services.payment.group import Asked, Group
from services.refusal import Refusal
from tallystick.event.v1 import event_pb2
from tallystick.fraud.v1 import fraud_service_pb2

# Refusals that rest on what is known of an owner.
_ABOUT_OWNERS = frozenset(
    {
        "PAYER_NOT_ACTIVE",
        "VENDOR_NOT_FOUND",
        "VENDOR_NOT_ACTIVE",
        "WALLET_NOT_FOUND",
        "WALLET_NOT_ACTIVE",
    }
)
# An account is asked about at most this often, so that refusals cannot be made to load the user service.
_ASK_AGAIN = timedelta(seconds=1)
_REMEMBERED_MAX = 10_000


class Owners:
    """Applies the user service's events; asks it directly before a refusal that rests on what it says.

    Without the second part, who pays in the instant after an approval could be refused for not being approved.
    """

    def __init__(
        self,
        group: Group,
        parties: Parties,
        currencies: frozenset[str],
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._group = group
        self._parties = parties
        self._currencies = currencies
        self._now = now
        # When, and the asking itself: who is refused meanwhile waits for the same answer.
        self._asked: OrderedDict[UUID, tuple[datetime, asyncio.Task[bool]]] = OrderedDict()

    async def apply(self, event: event_pb2.Event) -> None:
        """Take over a change of an account. Others, and older ones than known, change nothing."""
        if event.WhichOneof("fact") == "user_changed":
            await self._group.submit(events.set_owner(event.user_changed.user, self._currencies))

    async def submit(
        self,
        command: Command,
        owner_ids: Iterable[UUID],
        facts: fraud_service_pb2.PaymentFacts | None = None,
    ) -> Outcome:
        """Carry out a command; before refusing it for what is known of an owner, make sure that is the latest.

        Raises:
            Refusal: what the command raises.
        """
        (answer,) = await self.submit_all([Asked(command, facts, tuple(owner_ids))])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def submit_all(self, asked: Sequence[Asked]) -> list[Outcome | Exception]:
        """Carry out commands that came together; the user service is asked once about all their owners.

        One answer for each, in the order asked: its outcome, or what `submit` would have raised.
        """
        answers = await self._group.submit_all(asked)
        doubted = [
            place
            for place, answer in enumerate(answers)
            if isinstance(answer, Refusal) and answer.reason in _ABOUT_OWNERS
        ]
        if not doubted:
            return answers
        try:
            owner_ids = {each: None for place in doubted for each in asked[place].owner_ids}
            if not await self._refresh(owner_ids):
                return answers
        except Exception as error:  # noqa: BLE001 - as an answer it is raised, or told in its place
            again: list[Outcome | Exception] = [error] * len(doubted)
        else:
            again = await self._group.submit_all([asked[place] for place in doubted])
        for place, answer in zip(doubted, again, strict=True):
            answers[place] = answer
        return answers

    async def _refresh(self, owner_ids: Iterable[UUID]) -> bool:
        now = self._now()
        asked = {owner_id: self._asked.get(owner_id) for owner_id in owner_ids}
        due = [
            owner_id
            for owner_id, earlier in asked.items()
            if earlier is None or now - earlier[0] >= _ASK_AGAIN
        ]
        asking = [
            earlier[1] for owner_id, earlier in asked.items() if earlier and owner_id not in due
        ]
        if due:
            asking.append(asyncio.create_task(self._ask(due)))
        for owner_id in due:
            self._asked[owner_id] = (now, asking[-1])
            self._asked.move_to_end(owner_id)
        while len(self._asked) > _REMEMBERED_MAX:
            self._asked.popitem(last=False)
        return any([await asyncio.shield(answer) for answer in asking])

    async def _ask(self, owner_ids: list[UUID]) -> bool:
        parties = await self._parties.get(owner_ids)
        for party in parties:
            await self._group.submit(events.set_owner(party.user, self._currencies))
        return bool(parties)
