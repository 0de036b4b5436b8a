"""What a deployment may set of the offline service."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.environment import Environment, SettingError
from services.offline.domain.terms import TerminalLimits, Terms
from services.offline.settings import Settings


@pytest.fixture
def variables(tls_for, tmp_path):
    tls = tls_for("offline")
    kek = tmp_path / "kek"
    kek.touch()
    return {
        "TALLYSTICK_DATABASE_URL": "sqlite+aiosqlite:////tmp/offline.db",
        "TALLYSTICK_REDIS_URL": "redis://127.0.0.1:1",
        "TALLYSTICK_USER_ADDRESS": "127.0.0.1:2",
        "TALLYSTICK_PAYMENT_ADDRESS": "127.0.0.1:3",
        "TALLYSTICK_KEK_FILE": str(kek),
        "TALLYSTICK_TLS_CERT_FILE": str(tls.certificate_file),
        "TALLYSTICK_TLS_KEY_FILE": str(tls.key_file),
        "TALLYSTICK_TLS_CA_FILE": str(tls.ca_file),
    }


def test_terms_are_as_documented_unless_set(variables):
    settings = Settings.read(Environment(variables))

    assert settings.terms == Terms()
    assert (settings.backlog_max, settings.settle_groups, settings.sweep_ms) == (50_000, 4, 2_000)


def test_everything_can_be_set(variables):
    variables |= {
        "TALLYSTICK_OFFLINE_ISSUER": "Island Bank",
        "TALLYSTICK_CURRENCIES": "KES,JPY",
        "TALLYSTICK_OFFLINE_VALUES": "5,10",
        "TALLYSTICK_OFFLINE_CAP": "20",
        "TALLYSTICK_OFFLINE_SCOPES": "north,south-2",
        "TALLYSTICK_OFFLINE_SPEND_DAYS": "1",
        "TALLYSTICK_OFFLINE_UPLOAD_HOURS": "24",
        "TALLYSTICK_KEYSET_DAYS": "7",
        "TALLYSTICK_OFFLINE_STORED_MAX": "1000",
        "TALLYSTICK_OFFLINE_STORED_COUNT_MAX": "30",
        "TALLYSTICK_OFFLINE_MINUTES_MAX": "60",
    }

    assert Settings.read(Environment(variables)).terms == Terms(
        issuer="Island Bank",
        currencies=frozenset({"KES", "JPY"}),
        values=(5, 10),
        cap=20,
        scopes=frozenset({"north", "south-2"}),
        spend_days=1,
        upload=timedelta(hours=24),
        keyset_age=timedelta(days=7),
        terminal=TerminalLimits(1000, 30, 60),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OFFLINE_VALUES", "10,5"),
        ("OFFLINE_VALUES", "5,5"),
        ("OFFLINE_VALUES", "0,5"),
        ("OFFLINE_VALUES", "five"),
        ("OFFLINE_VALUES", "5,"),
        ("OFFLINE_VALUES", ",".join(map(str, range(1, 18)))),
        ("OFFLINE_VALUES", "300000"),
        ("OFFLINE_SCOPES", "Main"),
        ("OFFLINE_SCOPES", "main,"),
        ("OFFLINE_ISSUER", "x" * 65),
        ("OFFLINE_SPEND_DAYS", "-1"),
        ("OFFLINE_SPEND_DAYS", "50"),
        ("KEYSET_DAYS", "0"),
        ("KEYSET_DAYS", "61"),
        ("CURRENCIES", "INR,XXX"),
        ("BACKLOG_MAX", "1"),
        ("PAYMENT_ADDRESS", "nowhere"),
        ("KEK_FILE", "/no/such/file"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(variables, name, value):
    with pytest.raises(SettingError, match=f"TALLYSTICK_{name}"):
        Settings.read(Environment({**variables, f"TALLYSTICK_{name}": value}))
