"""Keeps a rule from declining more than its share, and the model from stopping newcomers where all are new."""

from __future__ import annotations

# Payments over which a share is taken, about: older ones fade.
_MEMORY = 1_000
# Before so many payments a share means nothing.
_COUNT_MIN = 100
_KEPT = 1 - 1 / _MEMORY
# Of recent payments, newcomers' share up to which a newcomer is something unusual.
_NEWCOMERS_MAX = 0.10


class Guard:
    """Counts what each rule declines of the recent payments.

    A rule that would decline more than its share is not believed: it reviews, until its share has
    fallen again. Whoever mistypes a rule holds up payments then, and refuses none.

    It also knows how many recent payments were newcomers'. Where most payers are known, a stranger is a
    sign; where a deployment is young or grows fast, being new says nothing.

    Args:
        share_max: Of recent payments, what one rule may decline.
    """

    def __init__(self, share_max: float = 0.05) -> None:
        self.share_max = share_max
        self._payments = 0
        # Nothing is known yet, so all are new.
        self._newcomers = 1.0
        # Rule -> (declined, fading; payments when that was true).
        self._declined: dict[str, tuple[float, int]] = {}
        self._tripped: set[str] = set()
        self._news: list[str] = []

    def count(self, *, newcomer: bool) -> None:
        """A payment comes, of a payer who is known or is not."""
        self._payments += 1
        self._newcomers += (newcomer - self._newcomers) / _MEMORY

    def newcomers_are_usual(self) -> bool:
        """Whether recent payments were newcomers' so often that being one says nothing."""
        return self._newcomers > _NEWCOMERS_MAX

    def stops(self, rule: str) -> bool:
        """A rule wants to decline the payment counted last; whether it only reviews it."""
        declined, when = self._declined.get(rule, (0.0, 0))
        declined = declined * _KEPT ** (self._payments - when) + 1.0
        self._declined[rule] = declined, self._payments
        # What a share of all payments would have added up to, fading alike.
        most = self.share_max * _MEMORY * (1 - _KEPT ** max(self._payments, _COUNT_MIN))
        if declined <= most:
            self._tripped.discard(rule)
            return False
        if rule not in self._tripped:
            self._tripped.add(rule)
            self._news.append(rule)
        return True

    def tripped(self) -> frozenset[str]:
        """Rules that only review now."""
        return frozenset(self._tripped)

    def take_news(self) -> list[str]:
        """Rules that began to be stopped since this was last asked."""
        news, self._news = self._news, []
        return news
