"""Domain values as the contract's messages."""

from __future__ import annotations

from datetime import datetime

from uuid_utils import UUID

from services import names
from services.money import Money
from services.offline.domain.code import Code
from services.offline.domain.double_spend import DoubleSpend
from services.offline.domain.item import Entry, State, Verdict
from services.offline.domain.liability import RULES
from services.offline.domain.right import Right
from services.offline.domain.terms import Terms
from services.times import timestamp
from tallystick.offline.v1 import code_service_pb2, offline_pb2, terminal_sync_service_pb2
from tallystick.type.v1 import money_pb2


def money(value: Money) -> money_pb2.Money:
    """An amount."""
    return money_pb2.Money(minor_units=value.minor_units, currency_code=value.currency_code)


def code_message(code: Code, spender: tuple[UUID, int] | None = None) -> offline_pb2.Code:
    """A code; `spender` is the entry that spent it, and how much."""
    message = offline_pb2.Code(
        name=names.code_name(code.code_id),
        owner=names.user_name(code.owner_id),
        state=offline_pb2.Code.State.ValueType(code.state),
        value=money(code.value),
        hint=code.hint,
        scope=code.scope,
        issue_time=timestamp(code.issue_time),
        expire_time=timestamp(code.expire_time),
        release_time=timestamp(code.release_time),
    )
    if code.revoke_time is not None:
        message.revoke_time.CopyFrom(timestamp(code.revoke_time))
    if spender is not None:
        entry_id, minor_units = spender
        message.payment = names.payment_name(entry_id)
        message.spent.CopyFrom(money(Money(minor_units, code.value.currency_code)))
    return message


def right_message(right: Right, terms: Terms) -> offline_pb2.OfflineRight:
    """A right."""
    message = offline_pb2.OfflineRight(
        owner=names.user_name(right.owner_id),
        level=offline_pb2.OfflineRight.Level.ValueType(right.level),
        reason=right.reason,
        caps=[money(cap) for cap in terms.moneys(right.cap(terms.cap))],
    )
    if right.update_time is not None:
        message.update_time.CopyFrom(timestamp(right.update_time))
    return message


def item_message(entry: Entry) -> offline_pb2.Item:
    """An item as it stands now."""
    return decided_item(entry, entry.verdict, entry.decide_time)


def decided_item(entry: Entry, verdict: Verdict, decide_time: datetime | None) -> offline_pb2.Item:
    """An item with a result: its own, or one that it is being given."""
    assert entry.item_id is not None
    message = offline_pb2.Item(
        name=names.item_name(entry.item_id),
        terminal=names.terminal_name(entry.vendor_id, entry.terminal_id),
        sequence=entry.sequence,
        state=offline_pb2.Item.State.ValueType(verdict.state),
        amount=money(entry.money),
        spend_time=timestamp(entry.record_time),
        receive_time=timestamp(entry.receive_time),
    )
    if verdict.state is State.RECEIVED:
        return message
    message.reason = offline_pb2.Reason.ValueType(verdict.reason)
    message.detail = verdict.detail
    message.liability = offline_pb2.Liability.ValueType(verdict.liability)
    if decide_time is not None:
        message.decide_time.CopyFrom(timestamp(decide_time))
    returned = entry.returned(verdict)
    if returned is not None:
        message.payment = names.payment_name(entry.entry_id)
        message.returned.CopyFrom(money(Money(returned, entry.money.currency_code)))
    return message


def double_spend_message(
    found: DoubleSpend, first: Entry, second: Entry
) -> offline_pb2.DoubleSpend:
    """One code in two sales, without the signed entries."""
    return offline_pb2.DoubleSpend(
        code=names.code_name(found.code_id),
        owner=names.user_name(found.owner_id),
        first=item_message(first),
        second=item_message(second),
        proven=found.proven,
        find_time=timestamp(found.find_time),
    )


def tiers(terms: Terms) -> list[code_service_pb2.Tier]:
    """Every value a code may have, in every currency."""
    return [
        code_service_pb2.Tier(number=number, value=money(value))
        for number, units in enumerate(terms.values)
        for value in terms.moneys(units)
    ]


def liabilities() -> list[code_service_pb2.LiabilityRule]:
    """Who bears which loss."""
    return [
        code_service_pb2.LiabilityRule(
            reason=offline_pb2.Reason.ValueType(rule.reason),
            liability=offline_pb2.Liability.ValueType(rule.liability),
            explanation=rule.explanation,
        )
        for rule in RULES
    ]


def limits(terms: Terms) -> terminal_sync_service_pb2.TerminalLimits:
    """What a terminal may take without network: it warns at half of what it refuses beyond."""
    most = terms.terminal
    return terminal_sync_service_pb2.TerminalLimits(
        payment_max=[money(value) for value in terms.moneys(terms.values[-1])],
        stored_soft=[money(value) for value in terms.moneys(most.stored_max // 2)],
        stored_hard=[money(value) for value in terms.moneys(most.stored_max)],
        stored_count_soft=most.count_max // 2,
        stored_count_hard=most.count_max,
        minutes_soft=most.minutes_max // 2,
        minutes_hard=most.minutes_max,
    )
