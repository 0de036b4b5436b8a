"""`tallystick demo`: what a newcomer sees first."""

import re
import subprocess

import pytest

from tests.stacks import TALLYSTICK


@pytest.mark.parametrize("profile", ["dev", "mysql"])
def test_the_demo_passes_every_check_and_leaves_nothing(profile, tmp_path):
    done = subprocess.run(
        [*TALLYSTICK, "demo", "--profile", profile],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    last = done.stdout.splitlines()[-1]
    passed = re.fullmatch(r"demo: (\d+) checks passed", last)
    assert passed, last
    assert int(passed[1]) == done.stdout.count("✓") >= 50
    assert list(tmp_path.iterdir()) == []
