"""What a deployment may set of the fraud service."""

from __future__ import annotations

import pytest

from services.environment import Environment, SettingError
from services.fraud.domain.assessment import Limits
from services.fraud.settings import Settings


@pytest.fixture
def variables(tls_for):
    tls = tls_for("fraud")
    return {
        "TALLYSTICK_DATABASE_URL": "sqlite+aiosqlite:////tmp/fraud.db",
        "TALLYSTICK_REDIS_URL": "redis://127.0.0.1:1",
        "TALLYSTICK_USER_ADDRESS": "127.0.0.1:2",
        "TALLYSTICK_TLS_CERT_FILE": str(tls.certificate_file),
        "TALLYSTICK_TLS_KEY_FILE": str(tls.key_file),
        "TALLYSTICK_TLS_CA_FILE": str(tls.ca_file),
    }


def test_limits_are_as_documented_unless_set(variables):
    assert Settings.read(Environment(variables)).limits == Limits(
        20_000.0, 50_000, 500_000, 10_000_000, 1_000_000, 2_500_000
    )
    # What a rule is tried on, and what is replayed, is judged by the same.
    assert Settings.read(Environment(variables)).limits == Limits()


def test_every_limit_can_be_set(variables):
    variables |= {
        "TALLYSTICK_DISTANCE_LIMIT_METERS": "5000",
        "TALLYSTICK_POSITION_FLOOR_MINOR_UNITS": "1",
        "TALLYSTICK_REVIEW_LIMIT_MINOR_UNITS": "2",
        "TALLYSTICK_REVIEW_LIMIT_STANDARD_MINOR_UNITS": "3",
        "TALLYSTICK_REVIEW_LIMIT_PLUS_MINOR_UNITS": "4",
        "TALLYSTICK_HARD_LIMIT_MINOR_UNITS": "5",
    }

    assert Settings.read(Environment(variables)).limits == Limits(5_000.0, 1, 2, 5, 3, 4)


@pytest.mark.parametrize(
    ("lowest", "hard", "standard", "plus"),
    [(10, 1_000, 20, 50), (10, 30, 20, 30), (10, 10, 10, 10), (0, 10, 0, 0)],
)
def test_higher_tiers_keep_their_distance_from_the_lowest_up_to_the_hard_limit(
    variables, lowest, hard, standard, plus
):
    variables["TALLYSTICK_REVIEW_LIMIT_MINOR_UNITS"] = str(lowest)
    variables["TALLYSTICK_HARD_LIMIT_MINOR_UNITS"] = str(hard)

    limits = Settings.read(Environment(variables)).limits

    assert (limits.standard_review_minor_units, limits.plus_review_minor_units) == (standard, plus)


def test_there_are_draft_models_only_where_a_folder_is_set(variables, tmp_path):
    assert Settings.read(Environment(variables)).drafts_directory is None
    variables["TALLYSTICK_MODEL_DRAFTS_DIR"] = str(tmp_path)
    assert Settings.read(Environment(variables)).drafts_directory == tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISTANCE_LIMIT_METERS", "far"),
        ("POSITION_FLOOR_MINOR_UNITS", "-1"),
        ("REVIEW_LIMIT_MINOR_UNITS", "10000001"),
        ("REVIEW_LIMIT_STANDARD_MINOR_UNITS", "499999"),
        ("REVIEW_LIMIT_PLUS_MINOR_UNITS", "999999"),
        ("REVIEW_LIMIT_PLUS_MINOR_UNITS", "10000001"),
        ("HARD_LIMIT_MINOR_UNITS", "5.5"),
        ("USER_ADDRESS", "nowhere"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(variables, name, value):
    with pytest.raises(SettingError, match=f"TALLYSTICK_{name}"):
        Settings.read(Environment({**variables, f"TALLYSTICK_{name}": value}))
