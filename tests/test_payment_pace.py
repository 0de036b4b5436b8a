"""Groups gather longer the busier the process is."""

import pytest

from services.payment.pace import SECONDS_MAX, SECONDS_MIN, Pace


class Machine:
    """A clock, and a process that is busy for a share of it."""

    def __init__(self):
        self.time = self.used = 0.0

    def run(self, seconds, share):
        self.time += seconds
        self.used += seconds * share


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def pace(machine):
    return Pace(lambda: machine.time, lambda: machine.used)


def after(pace, machine, seconds, share):
    for _ in range(round(seconds / 0.02)):
        machine.run(0.02, share)
        found = pace.seconds()
    return found


def test_at_rest_nobody_waits_long(pace, machine):
    assert pace.seconds() == SECONDS_MIN
    assert after(pace, machine, 5, 0.3) == SECONDS_MIN


def test_near_saturation_groups_gather_longest(pace, machine):
    assert after(pace, machine, 5, 0.9) == SECONDS_MAX


def test_in_between_it_grows_with_how_busy_the_process_is(pace, machine):
    found = [after(pace, machine, 5, share) for share in (0.48, 0.55, 0.62)]

    assert SECONDS_MIN < found[0] < found[1] < found[2] < SECONDS_MAX


def test_it_follows_within_a_second(pace, machine):
    after(pace, machine, 5, 0.1)
    assert after(pace, machine, 1, 1.0) == SECONDS_MAX
    assert after(pace, machine, 1, 0.1) == SECONDS_MIN


def test_a_moment_changes_little(pace, machine):
    after(pace, machine, 5, 0.1)
    machine.run(0.1, 1.0)
    assert pace.seconds() == SECONDS_MIN
