"""A trust bundle as the values that decisions use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from pos.decision import Key, Limits, Terms
from pos.errors import PosError
from protocol import signed
from tallystick.offline.v1.terminal_sync_service_pb2 import SignedTrustBundle, TrustBundle
from tallystick.type.v1.money_pb2 import Money


def terms(bundle: TrustBundle) -> Terms:
    """What a verified bundle says."""
    limits = bundle.limits
    stored_soft, stored_hard = _amounts(limits.stored_soft), _amounts(limits.stored_hard)
    return Terms(
        version=bundle.version,
        server_time=_time(bundle.server_time),
        issuer=bundle.issuer,
        scope=bundle.scope,
        tiers={
            (tier.number, tier.value.currency_code): tier.value.minor_units for tier in bundle.tiers
        },
        keys={key.keyset: Key(key.key, _time(key.epoch_time)) for key in bundle.code_keys},
        issuer_keys={key.key_id: key.public_key for key in bundle.issuer_keys},
        denied=frozenset(bundle.denied),
        issued=bundle.issued.data,
        issued_time=_time(bundle.issued.build_time),
        limits={
            currency: Limits(
                payment_max=payment_max,
                stored_soft=stored_soft.get(currency, 0),
                stored_hard=stored_hard.get(currency, 0),
                count_soft=limits.stored_count_soft,
                count_hard=limits.stored_count_hard,
                age_soft=timedelta(minutes=limits.minutes_soft),
                age_hard=timedelta(minutes=limits.minutes_hard),
            )
            for currency, payment_max in _amounts(limits.payment_max).items()
        },
        spend_days=bundle.spend_days,
    )


def verified(
    travelling: SignedTrustBundle, keys: Mapping[str, bytes], terminal: str
) -> TrustBundle:
    """A bundle that one of these keys has signed, for this terminal.

    Raises:
        PosError: BUNDLE_UNTRUSTED.
    """
    try:
        bundle = signed.verify_bundle(travelling, keys)
    except (signed.SignatureWrong, signed.Unreadable) as error:
        message = "The trust bundle is not signed by a key this terminal knows. Enrol it anew."
        raise PosError("BUNDLE_UNTRUSTED", message) from error
    if bundle.terminal != terminal:
        raise PosError("BUNDLE_UNTRUSTED", "The trust bundle is another terminal's. Sync again.")
    return bundle


def _amounts(amounts: Iterable[Money]) -> dict[str, int]:
    return {amount.currency_code: amount.minor_units for amount in amounts}


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)
