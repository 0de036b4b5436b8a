"""Labelled worlds: folders of Parquet files, as payments that happened and what they really were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.fraud.domain.assessment import Site
from services.fraud.domain.distance import EARTH_RADIUS_METERS
from services.fraud.features.observation import Observation, ObservedPosition

DAY_SECONDS = 86_400
# Day 0 of every world, so that event times are plausible ones: 2026-01-01.
_EPOCH = 1_767_225_600.0
_AT_VENDOR, _AT_HOME, _ELSEWHERE = 0, 1, 2

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class WorldError(Exception):
    """A folder does not hold a world; says what is wrong and where."""


@dataclass(frozen=True)
class World:
    """Payments in time order, and what they really were. Arrays of equal length.

    Attributes:
        name: `synccfd` or `overlay`.
        day: Whole days since the world's day 0.
        time: Seconds since 1970.
        payer: A number each.
        vendor: A number each.
        minor_units: Amounts.
        latitude: Degrees, of the payer's device; NaN without position.
        longitude: As `latitude`.
        site_distance: Metres from there to the vendor's registered place; NaN when not known.
        remote: Card not present.
        offline: Paid with a code.
        code_age: Seconds; NaN without code.
        device: A number each, -1 without; None in a world that knows no devices.
        scenario: 0 for honest payments, else the kind of fraud.
        sites: Where each vendor sells, by its name.
    """

    name: str
    day: Integers
    time: Floats
    payer: Integers
    vendor: Integers
    minor_units: Integers
    latitude: Floats
    longitude: Floats
    site_distance: Floats
    remote: Flags
    offline: Flags
    code_age: Floats
    device: Integers | None
    scenario: Integers
    sites: Mapping[str, tuple[Site, ...]]

    def __len__(self) -> int:
        return len(self.time)

    def without_device(self) -> World:
        """The same payments, had no device an id."""
        return replace(self, device=None)

    def observations(self, start: int, end: int) -> list[Observation]:
        """Payments start to end, as the service would be told of them."""
        rows = slice(start, end)
        device = [-1] * (end - start) if self.device is None else self.device[rows].tolist()
        columns = zip(
            range(start, end),
            self.payer[rows].tolist(),
            self.vendor[rows].tolist(),
            self.minor_units[rows].tolist(),
            self.time[rows].tolist(),
            self.latitude[rows].tolist(),
            self.longitude[rows].tolist(),
            self.site_distance[rows].tolist(),
            device,
            self.offline[rows].tolist(),
            self.code_age[rows].tolist(),
            self.remote[rows].tolist(),
            strict=True,
        )
        return [
            Observation(
                f"payments/{row}",
                f"users/{payer}",
                f"users/v{vendor}",
                minor_units,
                at,
                None if isnan(latitude) else ObservedPosition(latitude, longitude),
                None if isnan(distance) else distance,
                f"{phone}" if phone >= 0 else "",
                offline,
                None if isnan(age) else age,
                remote,
            )
            for (
                row,
                payer,
                vendor,
                minor_units,
                at,
                latitude,
                longitude,
                distance,
                phone,
                offline,
                age,
                remote,
            ) in columns
        ]


def read(directory: Path) -> list[World]:
    """The worlds of a folder: those of `synccfd_tx.parquet` and `overlay_tx.parquet` it holds.

    Raises:
        WorldError: neither is there, or one lacks a file, a column or sense.
    """
    if not directory.is_dir():
        raise WorldError(f"{directory} is no folder. Give one with the worlds' Parquet files.")
    worlds = []
    if (directory / "synccfd_tx.parquet").exists():
        worlds.append(_synccfd(directory))
    if (directory / "overlay_tx.parquet").exists():
        worlds.append(_overlay(directory))
    if not worlds:
        raise WorldError(
            f"{directory} holds no world: neither synccfd_tx.parquet nor overlay_tx.parquet is in it."
        )
    return worlds


def _synccfd(directory: Path) -> World:
    numbers = ("t", "payer", "vendor", "cents", "remote", "dev_src", "scenario")
    places = ("dev_lat_e5", "dev_lon_e5")
    rows = _Table(directory / "synccfd_tx.parquet", numbers, nullable=places)
    known = _Table(
        directory / "synccfd_places.parquet", ("id",), texts=("kind",), floats=("lat", "lon")
    )
    kinds = known["kind"]
    wrong = set(np.unique(kinds)) - {"payer", "vendor", "home", "p", "v"}
    if wrong:
        raise known.error("kind", f"{min(wrong)!r} is neither a payer nor a vendor")
    at_vendor = np.isin(kinds, ("vendor", "v"))
    sites, homes = known.places(at_vendor), known.places(~at_vendor)
    site = sites.of(rows, "vendor")
    home = homes.of(rows, "payer")
    source = rows["dev_src"]
    if not np.isin(source, (_AT_VENDOR, _AT_HOME, _ELSEWHERE)).all():
        raise rows.error(
            "dev_src", "must be 0 (the vendor's), 1 (home) or 2 (dev_lat_e5, dev_lon_e5)"
        )
    elsewhere = np.stack([rows["dev_lat_e5"], rows["dev_lon_e5"]]) / 1e5
    position = np.where(source == _AT_VENDOR, site, np.where(source == _AT_HOME, home, elsewhere))
    remote = rows["remote"] == 1
    return _world("synccfd", rows, position, sites, scenario="scenario", remote=remote)


def _overlay(directory: Path) -> World:
    numbers = ("t", "payer", "vendor", "cents", "offline", "cls")
    nullable = ("dev_lat_e4", "dev_lon_e4", "code_age_s", "device")
    rows = _Table(directory / "overlay_tx.parquet", numbers, nullable=nullable)
    known = _Table(directory / "overlay_vendors.parquet", ("id",), floats=("reg_lat", "reg_lon"))
    sites = known.places(np.ones(len(known), bool), "reg_lat", "reg_lon")
    position = np.stack([rows["dev_lat_e4"], rows["dev_lon_e4"]]) / 1e4
    world = _world(
        "overlay", rows, position, sites, scenario="cls", remote=np.zeros(len(rows), bool)
    )
    offline = rows["offline"] == 1
    device = rows["device"]
    return replace(
        world,
        offline=offline,
        code_age=np.where(offline, rows["code_age_s"], np.nan),
        device=np.where(np.isnan(device), -1, device).astype(np.int64),
    )


def _world(
    name: str, rows: _Table, position: Floats, sites: _Places, *, scenario: str, remote: Flags
) -> World:
    t = rows["t"]
    if (np.diff(t) < 0).any():
        raise rows.error("t", "rows must be in time order")
    if (rows["cents"] < 0).any():
        raise rows.error("cents", "amounts must not be below zero")
    latitude, longitude = position
    # One that is half known is none.
    latitude = np.where(np.isnan(longitude), np.nan, latitude)
    return World(
        name=name,
        day=(t // DAY_SECONDS).astype(np.int64),
        time=t + _EPOCH,
        payer=rows["payer"].astype(np.int64),
        vendor=rows["vendor"].astype(np.int64),
        # The generators round some amounts to nothing, which nobody can pay.
        minor_units=np.maximum(rows["cents"].astype(np.int64), 1),
        latitude=latitude,
        longitude=longitude,
        site_distance=meters_between(np.stack([latitude, longitude]), sites.of(rows, "vendor")),
        remote=remote,
        offline=np.zeros(len(rows), bool),
        code_age=np.full(len(rows), np.nan),
        device=None,
        scenario=rows[scenario].astype(np.int64),
        sites=sites.as_sites(),
    )


def meters_between(place: Floats, other: Floats) -> Floats:
    """As `distance_meters`, for arrays of shape (2, n): latitudes, then longitudes, in degrees."""
    (phi, other_phi), (east, other_east) = np.radians(np.stack([place, other], axis=1))
    half_chord = (
        np.sin((other_phi - phi) / 2) ** 2
        + np.cos(phi) * np.cos(other_phi) * np.sin((other_east - east) / 2) ** 2
    )
    distance: Floats = 2 * EARTH_RADIUS_METERS * np.arcsin(np.sqrt(np.minimum(half_chord, 1.0)))
    return distance


class _Table:
    """Named columns of a Parquet file: numbers as doubles (null: NaN), texts as they are."""

    def __init__(
        self,
        path: Path,
        numbers: Iterable[str],
        *,
        floats: Iterable[str] = (),
        nullable: Iterable[str] = (),
        texts: Iterable[str] = (),
    ) -> None:
        self._path = path
        whole, numbers, texts = {*numbers, *floats}, [*numbers, *floats, *nullable], [*texts]
        try:
            columns = pq.read_schema(path).names
            for name in (*numbers, *texts):
                if name not in columns:
                    raise WorldError(
                        f"{path} lacks the column {name!r}; it has {', '.join(columns)}."
                    )
            table = pq.read_table(path, columns=[*numbers, *texts])
        except FileNotFoundError:
            raise WorldError(f"{path} is missing.") from None
        except (pa.ArrowException, OSError) as error:
            raise WorldError(f"{path} cannot be read as Parquet: {error}") from error
        self._columns: Mapping[str, NDArray[Any]] = {
            **{
                name: self._number(table[name], name, nullable=name not in whole)
                for name in numbers
            },
            **{name: table[name].to_numpy(zero_copy_only=False).astype(str) for name in texts},
        }
        self._rows: int = table.num_rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def error(self, column: str, what: str) -> WorldError:
        return WorldError(f"{self._path}, column {column!r}: {what}.")

    def places(self, rows: Flags, latitude: str = "lat", longitude: str = "lon") -> _Places:
        return _Places(self["id"][rows], np.stack([self[latitude][rows], self[longitude][rows]]))

    def _number(self, column: pa.ChunkedArray, name: str, *, nullable: bool) -> Floats:
        kind = column.type
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ):
            raise self.error(name, f"must hold numbers, not {kind}")
        if column.null_count and not nullable:
            raise self.error(name, "must not be null")
        values: Floats = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return values


class _Places:
    """Where some ids are."""

    def __init__(self, ids: Floats, places: Floats) -> None:
        order = np.argsort(ids, kind="stable")
        self._ids, self._places = ids[order], places[:, order]

    def as_sites(self) -> dict[str, tuple[Site, ...]]:
        """One open site for each vendor, as the service would know it."""
        latitudes, longitudes = self._places.tolist()
        return {
            f"users/v{number:.0f}": (
                Site(f"users/v{number:.0f}/sites/1", latitude, longitude, open=True),
            )
            for number, latitude, longitude in zip(
                self._ids.tolist(), latitudes, longitudes, strict=True
            )
            if not isnan(latitude + longitude)
        }

    def of(self, rows: _Table, column: str) -> Floats:
        """Latitudes and longitudes for a column of ids; NaN for an id without a place."""
        wanted = rows[column]
        if not len(self._ids):
            return np.full((2, len(wanted)), np.nan)
        at = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        return np.where(self._ids[at] == wanted, self._places[:, at], np.nan)
