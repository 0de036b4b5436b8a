"""The directories of a stack: one stack at a time, in order before it starts."""

import base64
import stat
import subprocess
import sys

import pytest

from cli.process import StartError
from cli.stack.layout import Layout, write_secret


@pytest.fixture
def layout(tmp_path):
    return Layout(run=tmp_path / "run", data=tmp_path / "data" / "dev")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_claim_makes_the_directories_for_their_owner_only(layout):
    with layout.claim():
        assert mode(layout.run) == mode(layout.data) == 0o700


def test_a_claim_keeps_others_out_until_it_ends(layout):
    with (
        layout.claim(),
        pytest.raises(StartError, match=r"A stack is running in \S+/run \(process \d+\)"),
        layout.claim(),
    ):
        pass
    with layout.claim():
        pass


def test_a_claim_ends_with_the_process_that_holds_it(layout):
    holder = (
        "import os, pathlib, sys\n"
        "from cli.stack.layout import Layout\n"
        "layout = Layout(*map(pathlib.Path, sys.argv[1:]))\n"
        "with layout.claim():\n"
        "    layout.endpoints_file.write_text('{}')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", holder, layout.run, layout.data], check=False)
    assert layout.endpoints_file.exists()

    with layout.claim():
        assert not layout.endpoints_file.exists(), "it told where a stack is that is no more"


def test_logs_of_the_start_before_are_kept_once(layout):
    for text in ("first", "second", "third"):
        with layout.claim():
            assert not layout.log("user").exists()
            layout.log("user").write_text(text)

    with layout.claim():
        assert layout.log("user").with_name("user.log.1").read_text() == "third"


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    layout = Layout(run=tmp_path / "file" / "run", data=tmp_path / "data")

    with (
        pytest.raises(StartError, match=r"/file/run cannot be used: Not a directory\."),
        layout.claim(),
    ):
        pass


def test_the_key_encryption_key_is_made_once_and_for_its_owner_only(layout):
    with layout.claim():
        file = layout.make_key_encryption_key()
        key = file.read_text()

        assert layout.make_key_encryption_key().read_text() == key
        assert len(base64.b64decode(key)) == 32
        assert mode(file) == 0o600


def test_a_secret_is_replaced_whole(tmp_path):
    file = tmp_path / "secret"
    (tmp_path / "secret.part").write_text("what a start that was cut off left")

    write_secret(file, "one")
    write_secret(file, "two")

    assert file.read_text() == "two"
    assert mode(file) == 0o600
    assert list(tmp_path.iterdir()) == [file]
