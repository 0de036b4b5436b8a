"""What the feature store is told: payments as they happened, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

_LATITUDE_MAX = 90.0
_LONGITUDE_MAX = 180.0


@dataclass(frozen=True, slots=True)
class ObservedPosition:
    """Where the payer's device says it is.

    Attributes:
        latitude: Degrees north.
        longitude: Degrees east.
        accuracy_meters: The radius it is 68 % sure to be within; 0 when it did not say.
        mocked: The device says the place is made up.
    """

    latitude: float
    longitude: float
    accuracy_meters: float = 0.0
    mocked: bool = False

    def is_possible(self) -> bool:
        """Whether such a place exists. NaN fails every comparison."""
        return (
            -_LATITUDE_MAX <= self.latitude <= _LATITUDE_MAX
            and -_LONGITUDE_MAX <= self.longitude <= _LONGITUDE_MAX
            and self.accuracy_meters >= 0
            and isfinite(self.accuracy_meters)
        )


@dataclass(frozen=True, slots=True)
class Observation:
    """One payment.

    Attributes:
        payment: Its id. Observing an id again does not count it again.
        payer: Who pays; 1 to 200 bytes of UTF-8.
        vendor: Who is paid; 1 to 200 bytes of UTF-8.
        amount: Minor units, 1 to 2^63 - 1.
        occur_time: When it happened, seconds since 1970: event time, not time of arrival.
        position: Where the payer's device is; None when it did not say. An impossible one counts as
            none.
        site_distance_meters: How far that is from the vendor's site; None when either is not known.
        device: An id of the payer's device; empty when there is none.
        offline: Paid with a code, without a network.
        code_age_seconds: How old the code was; None when there was none.
        remote: The payer need not be at the vendor: an order by wire.
    """

    payment: str
    payer: str
    vendor: str
    amount: int
    occur_time: float
    position: ObservedPosition | None = None
    site_distance_meters: float | None = None
    device: str = ""
    offline: bool = False
    code_age_seconds: float | None = None
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """What a payment turned out to be.

    Attributes:
        payer: Who paid.
        vendor: Who was paid.
        fraud: It was fraud; False: it was honest.
        occur_time: When it happened, seconds since 1970.
        like_payer: Its payer might have paid just so (`derive.like_its_payer`), so that a fraud speaks
            against the vendor. A fraud unlike its payer says that the payer was robbed.
    """

    payer: str
    vendor: str
    fraud: bool
    occur_time: float
    like_payer: bool = True
