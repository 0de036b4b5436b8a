"""The features, in order: what rules read, what the model is given, what an assessment shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Feature:
    """One number known of a payment before it is decided. Always finite.

    Attributes:
        name: As rules write it.
        unit: What it counts in. "minor units" are those of the payment's currency.
        meaning: One line; says what -1 stands for where it can be -1.
    """

    name: str
    unit: str
    meaning: str


_COUNT = "Decayed count of the payer's payments before this one, half-life {}."
_SUM = "Decayed sum of the payer's payments before this one, half-life {}."
_VENDOR_COUNT = "Decayed count of payments to the vendor before this one, half-life {}."

FEATURES: tuple[Feature, ...] = (
    # The amount against the payer's own history.
    Feature("amount", "minor units", "What would be paid."),
    Feature(
        "payer_payments", "payments", "The payer's payments that were let through, at most 50."
    ),
    Feature("amount_to_mean", "ratio", "Amount over the payer's usual one; -1 without history."),
    Feature(
        "amount_z",
        "deviations",
        "Amount less the payer's usual one, over its standard deviation; -1 below 2 payments.",
    ),
    Feature("amount_to_max", "ratio", "Amount over the payer's greatest; -1 without history."),
    Feature("amount_to_last", "ratio", "Amount over the payer's last one; -1 without one."),
    Feature(
        "hour_to_mean",
        "ratio",
        "The average of this and the last hour's amounts over the payer's usual one; -1 without history.",
    ),
    Feature(
        "day_to_mean",
        "ratio",
        "The average of this and the last day's amounts over the payer's usual one; -1 without history.",
    ),
    # How fast the payer pays.
    Feature("count_1m", "payments", _COUNT.format("1 min")),
    Feature("count_10m", "payments", _COUNT.format("10 min")),
    Feature("count_1h", "payments", _COUNT.format("1 h")),
    Feature("count_1d", "payments", _COUNT.format("1 day")),
    Feature("count_7d", "payments", _COUNT.format("7 days")),
    Feature("count_30d", "payments", _COUNT.format("30 days")),
    Feature("sum_1m", "minor units", _SUM.format("1 min")),
    Feature("sum_10m", "minor units", _SUM.format("10 min")),
    Feature("sum_1h", "minor units", _SUM.format("1 h")),
    Feature("sum_1d", "minor units", _SUM.format("1 day")),
    Feature("sum_7d", "minor units", _SUM.format("7 days")),
    Feature("sum_30d", "minor units", _SUM.format("30 days")),
    Feature("count_rush", "ratio", "Today's count (1 day) over the payer's usual (30 days)."),
    Feature(
        "spend_rush",
        "ratio",
        "Today's sum (1 day) with this payment over the payer's usual day's (30 days).",
    ),
    Feature("seconds_since_last", "s", "Since the payer's last payment; -1 without one."),
    # Where.
    Feature("position_missing", "0 or 1", "The device said no place that exists."),
    Feature("position_mocked", "0 or 1", "The device says that its place is made up."),
    Feature("accuracy_m", "m", "The radius the position is good to; -1 without position."),
    Feature("vendor_distance_km", "km", "From the vendor's site; -1 when either is not known."),
    Feature(
        "vendor_distance_excess_km",
        "km",
        "The same beyond the vendor's usual distance and the accuracy; -1 when not known.",
    ),
    Feature("home_distance_km", "km", "From where the payer mostly pays; -1 when not known."),
    Feature("travel_km", "km", "From the payer's last position; -1 when not known."),
    Feature(
        "travel_km_per_hour",
        "km/h",
        "The speed that takes, counting a minute at least; -1 when not known.",
    ),
    Feature("remote", "0 or 1", "The payer need not be at the vendor."),
    Feature("offline", "0 or 1", "Paid with a code, without a network."),
    Feature("code_age_seconds", "s", "Age of that code; -1 without one."),
    # What the payer is used to.
    Feature(
        "payer_vendor_payments", "payments", "To this vendor that were let through; 0: a new one."
    ),
    Feature("device_known", "-1, 0 or 1", "The payer has paid with this device; -1: it has no id."),
    Feature("device_age_days", "days", "Since the payer first paid with it; -1 when not known."),
    Feature("payer_devices", "devices", "The payer has paid with, at most 8."),
    # The vendor.
    Feature("vendor_count_1h", "payments", _VENDOR_COUNT.format("1 h")),
    Feature("vendor_count_1d", "payments", _VENDOR_COUNT.format("1 day")),
    Feature("vendor_count_7d", "payments", _VENDOR_COUNT.format("7 days")),
    Feature("vendor_count_28d", "payments", _VENDOR_COUNT.format("28 days")),
    Feature("vendor_rush", "ratio", "The vendor's count today (1 day) over its usual (28 days)."),
    Feature(
        "amount_to_vendor_mean", "ratio", "Amount over the vendor's usual one; -1 without history."
    ),
    Feature("vendor_offline_share", "share", "Of the vendor's payments (7 days), paid offline."),
    Feature("vendor_new_payer_share", "share", "Of them, by payers new to the vendor."),
    Feature("vendor_old_code_share", "share", "Of them, with codes older than an hour."),
    Feature("vendor_no_position_share", "share", "Of them, without a position."),
    # What earlier payments turned out to be; only once that is known.
    Feature(
        "vendor_fraud_7d", "payments", "Decayed count of the vendor's fraud, half-life 7 days."
    ),
    Feature(
        "vendor_fraud_28d", "payments", "Decayed count of the vendor's fraud, half-life 28 days."
    ),
    Feature("vendor_fraud_share", "share", "Of the vendor's labelled payments (7 days), fraud."),
    Feature("vendor_days_since_fraud", "days", "Since the vendor's last fraud; -1: none known."),
    Feature(
        "vendor_days_since_first_fraud",
        "days",
        "Since the first fraud of this run at the vendor; -1: none known.",
    ),
    Feature(
        "vendor_clean_since_fraud",
        "payments",
        "Payments to the vendor known to be honest since its last fraud; -1: no fraud known.",
    ),
    Feature(
        "payer_fraud_14d", "payments", "Decayed count of the payer's fraud, half-life 14 days."
    ),
    Feature("payer_days_since_fraud", "days", "Since the payer's last fraud; -1: none known."),
    Feature(
        "payer_clean_since_fraud",
        "payments",
        "By the payer, known to be honest since the last fraud; -1: no fraud known.",
    ),
    # Later ones at the end: kept features of earlier payments keep their places.
    Feature(
        "vendor_fraud_run",
        "payments",
        "Frauds like their payers at the vendor with no honest payment known since.",
    ),
    Feature("vendor_days_in_run", "days", "Since the first of them; -1: none."),
    Feature(
        "vendor_own_fraud_28d",
        "payments",
        "Decayed count of the vendor's fraud that was like its payers, half-life 28 days.",
    ),
)

NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)
INDEX: Mapping[str, int] = MappingProxyType({name: at for at, name in enumerate(NAMES)})
# A model made for another list, or for features that meant something else, must not be asked.
FEATURES_VERSION: str = hashlib.sha256(
    "\n".join(f"{feature.name}\t{feature.unit}\t{feature.meaning}" for feature in FEATURES).encode()
).hexdigest()[:16]
