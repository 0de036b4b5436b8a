"""What the offline service asks of the ledger, as requests, and what it gets."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from uuid_utils import uuid4, uuid7

from tallystick.payment.v1 import settlement_service_pb2 as pb
from tests.payment_stack import inr, to_offline

SPENT_AT = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)

RELEASED = pb.ReleasedReservation.STATE_RELEASED
SETTLED = pb.ReleasedReservation.STATE_SETTLED
NOT_FOUND = pb.ReleasedReservation.STATE_NOT_FOUND


def a_reservation(minor_units=10_00):
    return pb.NewReservation(name=f"reservations/{uuid4()}", minor_units=minor_units)


def to_reserve(person, *minor_units, **changes):
    """A request to set money aside, a reservation for each amount."""
    fields = {"request_id": str(uuid4()), "wallet": person.wallet_name}
    return pb.ReserveFundsRequest(
        **{"reservations": map(a_reservation, minor_units)} | fields | changes
    )


def an_item(payer, reservation, vendor, minor_units=10_00, /, **changes):
    """A payment a terminal of the vendor's took from the payer."""
    spent_at = Timestamp()
    spent_at.FromDatetime(SPENT_AT)
    fields = {
        "payment": f"payments/{uuid7()}",
        "payer": payer.name,
        "reservation": reservation,
        "vendor": vendor.name,
        "terminal": f"{vendor.name}/terminals/{uuid4()}",
        "amount": inr(minor_units),
        "occur_time": spent_at,
    }
    return pb.OfflinePayment(**fields | changes)


class Codes:
    """The offline service, calling one replica."""

    def __init__(self, replica):
        self._calls = replica.codes.settlements

    async def reserve(self, person, *minor_units):
        """The names of reservations, one for each amount, of money moved offline for it."""
        await person.wallets.MoveBalance(to_offline(person, sum(minor_units)))
        made = []
        for start in range(0, len(minor_units), 50):
            request = to_reserve(person, *minor_units[start : start + 50])
            await self.reserve_as(request)
            made += [each.name for each in request.reservations]
        return made

    async def reserve_as(self, request):
        """The answer to a request as it is."""
        return await self._calls.ReserveFunds(request)

    async def settle(self, *items):
        """A result for each."""
        answer = await self._calls.SettleOffline(pb.SettleOfflineRequest(items=items))
        return answer.results

    async def pay(self, payer, reservation, vendor, minor_units=10_00, /, **changes):
        """The payment made of one item, which must not be refused; whole, as its payer sees it."""
        (result,) = await self.settle(an_item(payer, reservation, vendor, minor_units, **changes))
        assert result.WhichOneof("outcome") == "payment", result
        payment = await payer.get(result.payment)
        assert (payment.state, payment.risk) == (result.payment.state, result.payment.risk)
        return payment

    async def refusal(self, item):
        """Why one item is refused."""
        (result,) = await self.settle(item)
        assert result.WhichOneof("outcome") == "refusal", result
        return result.refusal

    async def release(self, *names):
        """What each reservation is then."""
        answer = await self._calls.ReleaseReservations(pb.ReleaseReservationsRequest(names=names))
        assert [result.name for result in answer.results] == list(names)
        return [result.state for result in answer.results]
