"""Names that several services write and read: of resources, the ids inside them, and of event streams."""

from __future__ import annotations

from functools import lru_cache

from uuid_utils import UUID

# A payment's names are written some ten times, in its answer and in each of its events.
_RECENT = 2_048


def stream_name(service: str) -> str:
    """The Redis stream a service's events go to."""
    return f"events:{service}"


@lru_cache(_RECENT)
def user_name(user_id: UUID) -> str:
    """`users/{uuid}`."""
    return f"users/{user_id}"


@lru_cache(_RECENT)
def payment_name(payment_id: UUID) -> str:
    """`payments/{uuid}`."""
    return f"payments/{payment_id}"


def reservation_name(reservation_id: UUID) -> str:
    """`reservations/{uuid}`."""
    return f"reservations/{reservation_id}"


@lru_cache(_RECENT)
def terminal_name(vendor_id: UUID, terminal_id: UUID) -> str:
    """`users/{uuid}/terminals/{uuid}`."""
    return f"users/{vendor_id}/terminals/{terminal_id}"


@lru_cache(_RECENT)
def wallet_name(user_id: UUID, currency_code: str) -> str:
    """`users/{uuid}/wallets/{currency}`."""
    return f"users/{user_id}/wallets/{currency_code}"


@lru_cache(_RECENT)
def site_name(user_id: UUID, site_id: UUID) -> str:
    """`users/{uuid}/sites/{uuid}`."""
    return f"users/{user_id}/sites/{site_id}"


def case_name(case_id: UUID) -> str:
    """`cases/{uuid}`."""
    return f"cases/{case_id}"


def code_name(code_id: UUID) -> str:
    """`codes/{uuid}`."""
    return f"codes/{code_id}"


def item_name(item_id: UUID) -> str:
    """`items/{uuid}`."""
    return f"items/{item_id}"


def batch_name(batch_id: UUID) -> str:
    """`batches/{uuid}`."""
    return f"batches/{batch_id}"


def last_id(name: str) -> UUID:
    """The id a name ends with: of `users/{uuid}`, `payments/{uuid}`, `users/{uuid}/sites/{uuid}`.

    Names arrive validated against the contract's pattern, so a ValueError here is our mistake.
    """
    return UUID(name.rpartition("/")[2])


def owner_id(name: str) -> UUID:
    """The user id in a name that starts with `users/{uuid}`."""
    return UUID(name.split("/", 2)[1])
