"""Facts of the ledger as events, and events of users as commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache

from uuid_utils import UUID

from services import names, times
from services.payment import wire
from services.payment.domain import book as facts
from services.payment.domain.book import Fact
from services.payment.domain.commands import PLATFORM
from services.payment.domain.ledger import WalletKey
from services.payment.domain.payment import Payment, State
from services.payment.domain.wallet_commands import SetOwner
from tallystick.access.v1 import access_pb2
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import user_pb2

SOURCE = "payment"


def events(
    recorded: Iterable[tuple[Fact, str]], *, new_id: Callable[[], UUID]
) -> list[event_pb2.Event]:
    """The events of what a group decided, in order: facts, each with the trace it belongs to."""
    return [_event(fact, new_id, trace_id) for fact, trace_id in recorded]


def _event(fact: Fact, new_id: Callable[[], UUID], trace_id: str) -> event_pb2.Event:
    event = event_pb2.Event()
    if isinstance(fact, facts.PaymentMoved):
        _about_payment(event, fact.payment, fact.actor)
        _payment_moved(event, fact)
    elif isinstance(fact, facts.PaymentRefunded):
        _about_payment(event, fact.payment, fact.actor)
        event.payment_refunded.transfer.CopyFrom(wire.transfer_message(fact.transfer))
        refunded = wire.money(fact.payment.refunded, fact.payment.payer.currency_code)
        event.payment_refunded.refunded.CopyFrom(refunded)
    elif isinstance(fact, facts.PaymentAssessed):
        _about_payment(event, fact.payment, PLATFORM)
        event.payment_assessed.payment.CopyFrom(wire.payment_message(fact.payment))
        event.payment_assessed.payment.risk.CopyFrom(wire.risk_message(fact.risk))
    elif isinstance(fact, facts.FundsMoved):
        _about_wallet(event, fact.wallet, fact.actor, fact.transfer.create_time)
        event.funds_moved.transfer.CopyFrom(wire.transfer_message(fact.transfer))
    else:
        _about_wallet(event, fact.wallet, PLATFORM, fact.time)
        event.wallet_changed.wallet = event.subject
        event.wallet_changed.active = fact.active
    event.event_id = str(new_id())
    event.source = SOURCE
    event.trace_id = trace_id
    return event


def _about_payment(event: event_pb2.Event, payment: Payment, actor: str) -> None:
    head = _payment_head(payment.payment_id, payment.payer.owner_id, payment.vendor_id)
    event.CopyFrom(head)
    event.actor = actor
    event.occur_time.CopyFrom(times.timestamp(payment.update_time))


@lru_cache(maxsize=4)
def _payment_head(payment_id: UUID, payer_id: UUID, vendor_id: UUID) -> event_pb2.Event:
    # What the events of one payment, which follow each other, have in common; for copying.
    return event_pb2.Event(
        subject=names.payment_name(payment_id),
        audience=(names.user_name(payer_id), names.user_name(vendor_id)),
    )


def _about_wallet(event: event_pb2.Event, key: WalletKey, actor: str, time: datetime) -> None:
    event.subject = names.wallet_name(*key)
    event.actor = actor
    event.audience.append(names.user_name(key.owner_id))
    event.occur_time.CopyFrom(times.timestamp(time))


def _payment_moved(event: event_pb2.Event, fact: facts.PaymentMoved) -> None:
    payment = fact.payment
    transfers = [wire.transfer_message(transfer) for transfer in fact.transfers]
    if fact.state is State.PENDING:
        event.payment_created.payment.CopyFrom(wire.payment_message(payment))
    elif fact.state is State.PROCESSING:
        event.payment_processing.SetInParent()
    elif fact.state is State.SUCCESS:
        succeeded = event.payment_succeeded
        succeeded.transfers.extend(transfers)
        succeeded.risk.CopyFrom(wire.risk_message(payment.risk))
        succeeded.review_reason = fact.review_reason
    elif fact.state is State.FAILED:
        failed = event.payment_failed
        failed.reason = int(payment.failure_reason)  # type: ignore[assignment]
        failed.transfers.extend(transfers)
        failed.risk.CopyFrom(wire.risk_message(payment.risk))
        failed.review_reason = fact.review_reason
    else:
        event.payment_flagged.payment.CopyFrom(wire.payment_message(payment))
        event.payment_flagged.transfers.extend(transfers)


def set_owner(user: user_pb2.User, currencies: frozenset[str]) -> SetOwner:
    """What the user service says of an account, as a command."""
    return SetOwner(
        owner_id=names.last_id(user.name),
        active=user.state == user_pb2.User.STATE_ACTIVE,
        is_vendor=user.role == access_pb2.ROLE_VENDOR,
        version=user.version,
        currencies=currencies,
    )
