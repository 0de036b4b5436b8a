"""Page tokens: where the next page starts, bound to the request that asked."""

from __future__ import annotations

import base64
import binascii
import hashlib

from uuid_utils import UUID

from services.rpc import refusals

PAGE_SIZE_DEFAULT = 50
_ID_BYTES = 16
_DIGEST_BYTES = 8


def page_size(asked: int) -> int:
    """0 means the default; the contract bounds the rest."""
    return asked or PAGE_SIZE_DEFAULT


def issue(position: bytes, *query: object) -> str:
    """A token for the page behind `position`, good for the same query only."""
    return base64.urlsafe_b64encode(_digest(query) + position).decode()


def redeem(token: str, *query: object) -> bytes:
    """The position a token stands for.

    Raises:
        Refusal: page_token_invalid, for a token of another query or of no query at all.
    """
    try:
        raw = base64.urlsafe_b64decode(token)
    except (binascii.Error, ValueError) as error:
        raise refusals.page_token_invalid() from error
    if raw[:_DIGEST_BYTES] != _digest(query) or len(raw) == _DIGEST_BYTES:
        raise refusals.page_token_invalid()
    return raw[_DIGEST_BYTES:]


def redeem_id(token: str, *query: object) -> UUID:
    """The id a token stands for, where positions are ids.

    Raises:
        Refusal: page_token_invalid.
    """
    position = redeem(token, *query)
    if len(position) != _ID_BYTES:
        raise refusals.page_token_invalid()
    return UUID(bytes=position)


def _digest(query: tuple[object, ...]) -> bytes:
    # A mark against mistakes, not against attackers: every page is checked against the caller's rights anyway.
    return hashlib.sha256(repr(query).encode()).digest()[:_DIGEST_BYTES]
