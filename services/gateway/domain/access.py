"""What the contract says about calls from outside, as the gateway's own values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

# Envoy refuses buckets that fill faster.
FILL_INTERVAL_MIN = timedelta(milliseconds=50)


class LimitError(Exception):
    """A bucket that cannot do its work. The message names the class and what is expected."""


@dataclass(frozen=True)
class Bucket:
    """A token bucket: starts full, `tokens_per_fill` return every `fill_interval`, at most `max_tokens`."""

    max_tokens: int
    tokens_per_fill: int
    fill_interval: timedelta


@dataclass(frozen=True)
class Route:
    """One RPC that callers from outside may make.

    Attributes:
        path: `/{package}.{Service}/{Method}`.
        service: Who serves it, by the name in its certificate.
        roles: As in the token's `roles` claim, sorted; empty when anybody may call, with no token.
        rate_class: The bucket it draws from: `PAYMENT`, `READ`, …
        rate_cost: Tokens a call draws, at least 1.
        idempotent: May be sent again when a backend is unavailable.
        timeout: The longest a call runs.
        streams: The answer is a stream.
    """

    path: str
    service: str
    roles: tuple[str, ...]
    rate_class: str
    rate_cost: int
    idempotent: bool
    timeout: timedelta
    streams: bool

    @property
    def public(self) -> bool:
        """Needs no token, and is limited by client address."""
        return not self.roles

    def retry_after(self, bucket: Bucket) -> timedelta:
        """How long an empty bucket takes to hold what a call draws, in whole seconds, at least 1.

        An upper bound: a bucket that is not quite empty is ready sooner.
        """
        fills = -(-self.rate_cost // bucket.tokens_per_fill)
        return timedelta(seconds=max(1, -(-(fills * bucket.fill_interval) // timedelta(seconds=1))))


def check_buckets(routes: Iterable[Route], buckets: Mapping[str, Bucket]) -> None:
    """See that every call can be made at all.

    Raises:
        LimitError: a bucket is missing, is empty, fills too fast for Envoy, or is smaller than one call draws.
    """
    for route in routes:
        name = route.rate_class
        bucket = buckets.get(name)
        if bucket is None:
            raise LimitError(f"Rate class {name} of {route.path} has no bucket.")
        if bucket.tokens_per_fill < 1 or bucket.fill_interval < FILL_INTERVAL_MIN:
            raise LimitError(
                f"Rate class {name} fills {bucket.tokens_per_fill} tokens every {bucket.fill_interval}. "
                f"Give at least 1 every 50 ms or more."
            )
        if bucket.max_tokens < route.rate_cost:
            raise LimitError(
                f"Rate class {name} holds {bucket.max_tokens} tokens, and {route.path} draws "
                f"{route.rate_cost} at once. Make it hold at least as many."
            )
