"""What the ledger should do, told by a model that only counts.

It knows nothing of accounts, transfers or books: who has how much where, where each payment and reservation stands, and
what each request was answered.
"""

from __future__ import annotations

from collections import Counter

from services.payment.domain.book import Policy
from services.payment.domain.ledger import Bucket
from services.payment.domain.payment import Decision, State
from services.payment.domain.reservation import ReservationState
from services.refusal import Refusal

POLICY = Policy(frozenset({"INR"}), degraded_floor=50, offline_cap=40)


class Model:
    """What should be so."""

    def __init__(self):
        self.active = {}
        self.versions = {}
        self.money = Counter()  # by (person or "out", bucket)
        self.payments = {}
        self.requests = {}
        self.reservations = {}

    def once(self, key, body, work):
        """The answer of a request: the first one, or what `work` says; a refusal is not remembered."""
        if key in self.requests:
            earlier, answer = self.requests[key]
            return answer if earlier == body else "REQUEST_ID_REUSED"
        answer = work()
        if not answer.isupper():
            self.requests[key] = (body, answer)
        return answer

    def set_owner(self, person, active, version):
        if version > self.versions.get(person, 0):
            self.active[person], self.versions[person] = active, version
        return "done"

    def move(self, person, source, target, amount):
        if person not in self.active:
            return "WALLET_NOT_FOUND"
        if not self.active[person]:
            return "WALLET_NOT_ACTIVE"
        if source != "out" and self.money[person, source] < amount:
            return "INSUFFICIENT_FUNDS"
        offline = self.money[person, "offline"] + self.money[person, "reserved"]
        if target == "offline" and offline + amount > POLICY.offline_cap:
            return "OFFLINE_CAP_EXCEEDED"
        self._transfer((person, source), (person, target), amount)
        return self._moved(person)

    def _moved(self, person):
        return f"moved, leaving {[self.money[person, bucket.name.lower()] for bucket in Bucket]}"

    def reserve(self, person, amounts):
        if not self.active[person]:
            return "WALLET_NOT_ACTIVE"
        if self.money[person, "offline"] < sum(amounts.values()):
            return "INSUFFICIENT_FUNDS"
        self._transfer((person, "offline"), (person, "reserved"), sum(amounts.values()))
        for reservation_id, amount in amounts.items():
            live = {"payer": person, "amount": amount, "state": ReservationState.LIVE}
            self.reservations[reservation_id] = live
        return self._moved(person)

    def spend(self, payment_id, reservation_id, vendor, amount, *, decision, hold):
        reservation = self.reservations[reservation_id]
        payer = reservation["payer"]
        if reservation["state"] is not ReservationState.LIVE:
            return f"RESERVATION_{reservation['state'].name}"
        if amount > reservation["amount"]:
            return "AMOUNT_OVER_RESERVATION"
        if payer == vendor:
            return "SELF_PAYMENT"
        if vendor not in self.active:
            return "VENDOR_NOT_FOUND"
        small = amount <= POLICY.degraded_floor
        passes = decision is Decision.ALLOW or (decision is Decision.DEGRADED and small)
        passes = passes and not hold and self.active[vendor]
        rest = reservation["amount"] - amount
        self._transfer((payer, "reserved"), (payer, "offline"), rest)
        target = (vendor, "online") if passes else (payer, "held")
        self._transfer((payer, "reserved"), target, amount)
        reservation["state"] = ReservationState.SETTLED
        made = {"payer": payer, "vendor": vendor, "amount": amount, "refunded": 0, "offline": True}
        state = State.SUCCESS if passes else State.FLAGGED
        unseen = passes and decision is Decision.DEGRADED
        self.payments[payment_id] = made | {"state": state, "unseen": unseen}
        return f"settled {payment_id}, {rest} back"

    def release(self, reservation_id):
        reservation = self.reservations[reservation_id]
        if reservation["state"] is ReservationState.LIVE:
            reservation["state"] = ReservationState.RELEASED
            payer = reservation["payer"]
            self._transfer((payer, "reserved"), (payer, "offline"), reservation["amount"])
        return f"reservation {reservation['state'].name}"

    def _transfer(self, source, target, amount):
        self.money[source] -= amount
        self.money[target] += amount

    def pay(self, payment_id, payer, vendor, amount, decision, *, wait):
        if not self.active.get(payer):
            return "PAYER_NOT_ACTIVE"
        if vendor not in self.active:
            return "VENDOR_NOT_FOUND"
        if not self.active[vendor]:
            return "VENDOR_NOT_ACTIVE"
        made = {"payer": payer, "vendor": vendor, "amount": amount, "refunded": 0, "offline": False}
        self.payments[payment_id] = made | {"state": State.PENDING, "unseen": False}
        if wait:
            self.settle(payment_id, decision)
        return f"payment {payment_id}"

    def settle(self, payment_id, decision):
        payment = self.payments[payment_id]
        payer, vendor, amount = payment["payer"], payment["vendor"], payment["amount"]
        if payment["state"] is not State.PENDING:
            return f"payment {payment_id}"
        small = amount <= POLICY.degraded_floor
        if (
            not (self.active[payer] and self.active[vendor])
            or decision is Decision.DECLINE
            or self.money[payer, "online"] < amount
        ):
            payment["state"] = State.FAILED
        elif decision is Decision.ALLOW or (decision is Decision.DEGRADED and small):
            self._transfer((payer, "online"), (vendor, "online"), amount)
            payment["state"] = State.SUCCESS
            payment["unseen"] = decision is Decision.DEGRADED
        else:
            self._transfer((payer, "online"), (payer, "held"), amount)
            payment["state"] = State.FLAGGED
        return f"payment {payment_id}"

    def resolve(self, payment_id, *, approve):
        payment = self.payments[payment_id]
        if payment["state"] is not State.FLAGGED:
            return "PAYMENT_NOT_FLAGGED"
        source = (payment["payer"], "offline" if payment["offline"] else "online")
        target = (payment["vendor"], "online") if approve else source
        self._transfer((payment["payer"], "held"), target, payment["amount"])
        payment["state"] = State.SUCCESS if approve else State.FAILED
        return f"resolved {payment['state'].name}, refunded 0"

    def refund(self, payment_id, amount):
        payment = self.payments[payment_id]
        if payment["state"] is not State.SUCCESS:
            return "PAYMENT_NOT_SETTLED"
        if payment["refunded"] + amount > payment["amount"]:
            return "REFUND_EXCEEDS_PAYMENT"
        if self.money[payment["vendor"], "online"] < amount:
            return "VENDOR_FUNDS_INSUFFICIENT"
        self._transfer((payment["vendor"], "online"), (payment["payer"], "online"), amount)
        payment["refunded"] += amount
        return f"refunded {payment['refunded']}"

    def assessed(self, payment_id):
        self.payments[payment_id]["unseen"] = False
        return f"payment {payment_id}"


def said(outcome):
    """An outcome in the model's words."""
    if outcome is None:
        return "done"
    if isinstance(outcome, Refusal):
        return outcome.reason
    kind = type(outcome).__name__
    if kind == "Payment":
        return f"payment {outcome.payment_id}"
    if kind == "Resolved":
        return f"resolved {outcome.payment.state.name}, refunded {outcome.payment.refunded}"
    if kind == "Refunded":
        return f"refunded {outcome.payment.refunded}"
    if kind == "SettledOffline":
        return f"settled {outcome.payment.payment_id}, {outcome.returned} back"
    if kind == "Reservation":
        return f"reservation {outcome.state.name}"
    return f"moved, leaving {outcome.wallet.balances}"
