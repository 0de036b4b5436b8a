"""From the state before a payment to its features: pure arithmetic, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from services.fraud.features.incidents import NO_INCIDENTS, Incidents, Kind
from services.fraud.features.layout import event_time, known_distance
from services.fraud.features.observation import Observation
from services.fraud.features.spec import INDEX, NAMES

_DAY = 86_400.0
# As in features.lua and labels.lua.
_PAYER_HALF_LIVES = (60.0, 600.0, 3_600.0, _DAY, 7 * _DAY, 30 * _DAY)
_VENDOR_HALF_LIVES = (3_600.0, _DAY, 7 * _DAY, 28 * _DAY)
_FRAUD_HALF_LIVES = (7 * _DAY, 28 * _DAY)
_WEEK, _FORTNIGHT = 7 * _DAY, 14 * _DAY
_EARTH_RADIUS_KM = 6_371.0088
_FLOAT_MAX = 3e38
_RECENT_SECONDS = 60.0
# A payment like its payer: over the usual amount, and from home. Honest amounts hardly pass it.
_LIKE_AMOUNT_MAX = 2.5
_LIKE_KM_MAX = 50.0
# Payments from which on a vendor's average distance is called usual.
_USUAL_AFTER = 3

# Where the state keeps them, in the order of `Incidents`.
_INCIDENTS = (
    (Kind.WRONG_CODES, "wrong_codes"),
    (Kind.OWN_DUPLICATE, "own_duplicates"),
    (Kind.DOUBLE_SPEND, "double_spends"),
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureVector:
    """The features of one payment.

    Attributes:
        payment: Its id.
        values: In the order of `spec.FEATURES`; finite.
    """

    payment: str
    values: tuple[float, ...]

    def __getitem__(self, name: str) -> float:
        return self.values[INDEX[name]]

    def as_dict(self) -> dict[str, float]:
        """Every feature by its name."""
        return dict(zip(NAMES, self.values, strict=True))


def like_its_payer(features: Sequence[float]) -> bool:
    """Whether the payer might have paid just so: neither far more than usual nor far from home.

    A fraud of that kind is more likely the vendor's doing than a thief's.

    Args:
        features: In the order of `spec.FEATURES`. What is not known (-1) is no difference.
    """
    return (
        features[INDEX["amount_to_mean"]] <= _LIKE_AMOUNT_MAX
        and features[INDEX["home_distance_km"]] <= _LIKE_KM_MAX
    )


class FeatureBatch(Sequence[FeatureVector]):
    """The features of some payments, in the order they were observed.

    Attributes:
        matrix: A row for each payment, a column for each of `spec.FEATURES`.
        incidents: Of each payment, what rules may know and the model may not.
    """

    def __init__(
        self,
        payments: Sequence[str],
        matrix: NDArray[np.float32],
        incidents: Sequence[Incidents],
    ) -> None:
        self.matrix = matrix
        self.incidents = incidents
        self._payments = payments

    def __len__(self) -> int:
        return len(self._payments)

    @overload
    def __getitem__(self, at: int) -> FeatureVector: ...
    @overload
    def __getitem__(self, at: slice) -> list[FeatureVector]: ...
    def __getitem__(self, at: int | slice) -> FeatureVector | list[FeatureVector]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        return FeatureVector(self._payments[at], tuple(self.matrix[at].tolist()))

    def __iter__(self) -> Iterator[FeatureVector]:
        for payment, row in zip(self._payments, self.matrix.tolist(), strict=True):
            yield FeatureVector(payment, tuple(row))


def derive(
    observations: Sequence[Observation], state: NDArray[np.void], *, latest: float
) -> FeatureBatch:
    """The features of payments, given the state before each.

    Args:
        observations: The payments.
        state: As `layout.STATE`, one for each.
        latest: No payment is believed to have happened later.
    """
    said = _said(observations, latest)
    columns = np.empty((len(NAMES), len(observations)), np.float64)
    out = _Columns(columns)
    # Each column lies in one piece: numpy then computes a row alone and in a batch the same way.
    old = _State(state)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        _payer(out, said, old)
        _place(out, said, old)
        _vendor(out, said, old)
        _labels(out, said, old)
    np.nan_to_num(columns, copy=False, nan=-1.0, posinf=_FLOAT_MAX, neginf=-_FLOAT_MAX)
    np.clip(columns, -_FLOAT_MAX, _FLOAT_MAX, out=columns)
    matrix = np.ascontiguousarray(columns.T, np.float32)
    return FeatureBatch(
        [seen.payment for seen in observations], matrix, _incidents(said["t"], state)
    )


class _Columns:
    def __init__(self, columns: Floats) -> None:
        self._columns = columns

    def __setitem__(self, name: str, values: Any) -> None:
        self._columns[INDEX[name]] = values

    def __getitem__(self, name: str) -> Floats:
        row: Floats = self._columns[INDEX[name]]
        return row


class _State:
    """Fields as doubles, vectors as (width, n), each in one piece."""

    def __init__(self, state: NDArray[np.void]) -> None:
        self._state = state

    def __getitem__(self, field: str) -> Floats:
        return np.ascontiguousarray(self._state[field].T, np.float64)


_SAID = (
    "t",
    "amount",
    "has_position",
    "latitude",
    "longitude",
    "accuracy",
    "mocked",
    "distance",
    "offline",
    "age",
    "remote",
)


def _said(observations: Sequence[Observation], latest: float) -> dict[str, Floats]:
    rows = []
    for seen in observations:
        position = seen.position
        if position is None or not position.is_possible():
            place = (0.0, 0.0, 0.0, -1.0, position is not None and position.mocked, -1.0)
        else:
            place = (
                1.0,
                position.latitude,
                position.longitude,
                position.accuracy_meters,
                position.mocked,
                known_distance(seen),
            )
        age = seen.code_age_seconds
        rows.append(
            (
                event_time(seen, latest),
                seen.amount,
                *place,
                seen.offline,
                max(0.0, age) if age is not None and abs(age) < np.inf else -1.0,
                seen.remote,
            )
        )
    columns = np.array(rows, np.float64).reshape(-1, len(_SAID)).T.copy()
    return dict(zip(_SAID, columns, strict=True))


def _payer(out: _Columns, said: dict[str, Floats], old: _State) -> None:
    t, amount = said["t"], said["amount"]
    known = old["payer_t"] >= 0
    gap = np.where(known, t - old["payer_t"], 0.0)
    payments, mean, deviation = old["payments"], old["mean"], np.sqrt(old["variance"])
    out["amount"] = amount
    out["payer_payments"] = np.minimum(payments, 50.0)
    out["amount_to_mean"] = np.where(payments > 0, amount / np.maximum(mean, 1.0), -1.0)
    # A payer who always paid the same is allowed a tenth of it.
    spread = np.maximum(deviation, np.maximum(0.1 * mean, 1.0))
    out["amount_z"] = np.where(payments > 1, (amount - mean) / spread, -1.0)
    out["amount_to_max"] = np.where(payments > 0, amount / np.maximum(old["greatest"], 1.0), -1.0)
    last = old["last_amount"]
    out["amount_to_last"] = np.where(last > 0, amount / np.maximum(last, 1.0), -1.0)
    counts, sums = old["counts"], old["sums"]
    late_counts, late_sums = old["late_counts"], old["late_sums"]
    for at, window in enumerate(("1m", "10m", "1h", "1d", "7d", "30d")):
        kept = np.exp2(-np.abs(gap) / _PAYER_HALF_LIVES[at])
        count, spent = counts[at] * kept, sums[at] * kept
        if at < len(late_counts):
            # For a late payment: what came in late before it, or what newer counters still say.
            count, spent = np.maximum(count, late_counts[at]), np.maximum(spent, late_sums[at])
        out[f"count_{window}"], out[f"sum_{window}"] = count, spent
    for name, window in (("hour_to_mean", "1h"), ("day_to_mean", "1d")):
        average = (out[f"sum_{window}"] + amount) / (out[f"count_{window}"] + 1.0)
        out[name] = np.where(payments > 0, average / np.maximum(mean, 1.0), -1.0)
    out["count_rush"] = 30.0 * (out["count_1d"] + 1.0) / (out["count_30d"] + 1.0)
    out["spend_rush"] = 30.0 * (out["sum_1d"] + amount) / (out["sum_30d"] + amount)
    out["seconds_since_last"] = np.where(known, np.abs(gap), -1.0)
    out["remote"] = said["remote"]
    out["offline"] = said["offline"]
    out["code_age_seconds"] = said["age"]
    out["payer_vendor_payments"] = old["vendor_times"]
    device = old["device_known"]
    out["device_known"] = device
    out["device_age_days"] = np.where(
        device > 0, np.maximum(t - old["device_since"], 0.0) / _DAY, -1.0
    )
    out["payer_devices"] = old["devices"]


def _place(out: _Columns, said: dict[str, Floats], old: _State) -> None:
    here = said["has_position"] > 0
    latitude, longitude, accuracy = said["latitude"], said["longitude"], said["accuracy"]
    out["position_missing"] = ~here
    out["position_mocked"] = said["mocked"]
    out["accuracy_m"] = accuracy
    distance = said["distance"]
    out["vendor_distance_km"] = np.where(distance >= 0, distance / 1_000, -1.0)
    usual = np.where(old["vendor_distances"] >= _USUAL_AFTER, old["vendor_distance"], 0.0)
    beyond = np.maximum(distance - usual - accuracy, 0.0)
    out["vendor_distance_excess_km"] = np.where(distance >= 0, beyond / 1_000, -1.0)
    home, last = old["home"], old["last_place"]
    from_home = _kilometers(latitude, longitude, home[0], home[1])
    out["home_distance_km"] = np.where(here & (old["home_weight"] > 0), from_home, -1.0)
    travel = _kilometers(latitude, longitude, last[0], last[1])
    moved = here & (old["place_t"] >= 0)
    hours = np.maximum(np.abs(said["t"] - old["place_t"]), _RECENT_SECONDS) / 3_600
    out["travel_km"] = np.where(moved, travel, -1.0)
    certain = np.maximum(travel - accuracy / 1_000, 0.0)
    out["travel_km_per_hour"] = np.where(moved, certain / hours, -1.0)


def _vendor(out: _Columns, said: dict[str, Floats], old: _State) -> None:
    gap = np.where(old["vendor_t"] >= 0, np.abs(said["t"] - old["vendor_t"]), 0.0)
    counts, late = old["vendor_counts"], old["vendor_late"]
    decayed = [counts[at] * np.exp2(-gap / each) for at, each in enumerate(_VENDOR_HALF_LIVES)]
    for at in range(len(late)):
        decayed[at] = np.maximum(decayed[at], late[at])
    hour, day, week, month = decayed
    out["vendor_count_1h"], out["vendor_count_1d"] = hour, day
    out["vendor_count_7d"], out["vendor_count_28d"] = week, month
    out["vendor_rush"] = 28.0 * (day + 1.0) / (month + 1.0)
    usual = old["vendor_mean"]
    out["amount_to_vendor_mean"] = np.where(
        old["vendor_payments"] > 0, said["amount"] / np.maximum(usual, 1.0), -1.0
    )
    kinds = old["vendor_kinds"] * np.exp2(-gap / _WEEK) / (week + 1.0)
    for at, kind in enumerate(("offline", "new_payer", "old_code", "no_position")):
        out[f"vendor_{kind}_share"] = kinds[at]


def _labels(out: _Columns, said: dict[str, Floats], old: _State) -> None:
    t = said["t"]
    gap = np.where(old["vendor_label_t"] >= 0, np.abs(t - old["vendor_label_t"]), 0.0)
    frauds, labels = old["vendor_frauds"], old["vendor_labels"]
    out["vendor_fraud_7d"] = frauds[0] * np.exp2(-gap / _FRAUD_HALF_LIVES[0])
    out["vendor_fraud_28d"] = frauds[1] * np.exp2(-gap / _FRAUD_HALF_LIVES[1])
    # Both decay alike, so the gap cancels out.
    out["vendor_fraud_share"] = frauds[0] / (labels[0] + 1.0)
    last, first = old["vendor_last_fraud"], old["vendor_first_fraud"]
    out["vendor_days_since_fraud"] = _days_since(t, last)
    out["vendor_days_since_first_fraud"] = _days_since(t, first)
    out["vendor_clean_since_fraud"] = np.where(last >= 0, old["vendor_clean"], -1.0)
    out["vendor_fraud_run"] = old["vendor_run"]
    out["vendor_days_in_run"] = _days_since(t, old["vendor_run_since"])
    out["vendor_own_fraud_28d"] = old["vendor_own_frauds"] * np.exp2(-gap / _FRAUD_HALF_LIVES[1])
    gap = np.where(old["payer_label_t"] >= 0, np.abs(t - old["payer_label_t"]), 0.0)
    out["payer_fraud_14d"] = old["payer_frauds"] * np.exp2(-gap / _FORTNIGHT)
    last = old["payer_last_fraud"]
    out["payer_days_since_fraud"] = _days_since(t, last)
    out["payer_clean_since_fraud"] = np.where(last >= 0, old["payer_clean"], -1.0)


def _incidents(t: Floats, state: NDArray[np.void]) -> Sequence[Incidents]:
    counted = [(kind, state[field]) for kind, field in _INCIDENTS]
    # Nothing has happened nearly always.
    if not any(kept[:, 1].any() for _, kept in counted):
        return [NO_INCIDENTS] * len(t)
    faded = [
        kept[:, 1] * np.exp2(-np.abs(t - kept[:, 0]) / kind.half_life_seconds)
        for kind, kept in counted
    ]
    return [Incidents(*each) for each in np.stack(faded, axis=1).tolist()]


def _days_since(t: Floats, event: Floats) -> Floats:
    return np.where(event >= 0, np.maximum(t - event, 0.0) / _DAY, -1.0)


def _kilometers(
    latitude: Floats, longitude: Floats, other_latitude: Floats, other_longitude: Floats
) -> Floats:
    phi, other_phi = np.radians(latitude), np.radians(other_latitude)
    half_chord = (
        np.sin((other_phi - phi) / 2) ** 2
        + np.cos(phi) * np.cos(other_phi) * np.sin(np.radians(other_longitude - longitude) / 2) ** 2
    )
    distance: Floats = 2 * _EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(half_chord, 1.0)))
    return distance
