"""The command line: what it says of itself, and of what it cannot do."""

import subprocess

import pytest

from cli.__main__ import main
from tests.stacks import TALLYSTICK


def said(capsys, *arguments):
    """The exit code and everything printed."""
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_help_names_every_command(capsys):
    code, text = said(capsys, "--help")

    assert code == 0
    for command in ("up", "serve", "migrate", "audit", "demo"):
        assert f"\n    {command} " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("up", "--profile", "oracle"), "argument --profile: invalid choice: 'oracle'"),
        (("up", "--port", "0"), "argument --port: '0' is not a port. Give 1 to 65535."),
        (("up", "--port", "http"), "argument --port: 'http' is not a port. Give 1 to 65535."),
        (("up", "--port", "65536"), "argument --port: '65536' is not a port. Give 1 to 65535."),
        (
            ("up", "--payment-processes", "0"),
            "argument --payment-processes: '0' is not a number of processes. Give 1 or more.",
        ),
        (("up", "--run"), "unrecognized arguments: --run"),
        (("serve", "bank"), "argument SERVICE: invalid choice: 'bank'"),
        (("audit", "--json"), "argument --json: expected one argument"),
    ],
)
def test_bad_arguments_are_named_and_exit_with_2(capsys, arguments, message):
    code, text = said(capsys, *arguments)

    assert code == 2
    assert message in text
    assert text.startswith("usage: tallystick")


def test_an_audit_without_a_stack_says_how_to_start_one(capsys, tmp_path):
    code, text = said(capsys, "audit", "--run-dir", str(tmp_path))

    assert code == 1
    assert text == (
        f"tallystick: No stack is ready: {tmp_path}/endpoints.json is missing. "
        "Start one with `tallystick up`.\n"
    )


@pytest.mark.parametrize("service", ["user", "payment", "fraud", "offline", "admin"])
def test_serving_without_settings_names_the_variable(capsys, service, monkeypatch):
    monkeypatch.delenv("TALLYSTICK_DATABASE_URL", raising=False)

    code, text = said(capsys, "serve", service)

    assert code == 2
    assert text.startswith("tallystick: TALLYSTICK_")
    assert "is not set" in text


def test_migrating_makes_every_database_and_once_more_changes_nothing(capsys, tmp_path):
    for _ in range(2):
        code, text = said(capsys, "migrate", "--data-dir", str(tmp_path))
        assert (code, text) == (0, "Migrated: user, payment, fraud, offline, admin.\n")
        made = sorted(path.name for path in tmp_path.glob("dev/*.db"))
        assert made == ["admin.db", "fraud.db", "offline.db", "payment.db", "user.db"]


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("", 2, "TALLYSTICK_MYSQL_URL is not set"),
        ("postgresql://localhost", 2, "TALLYSTICK_MYSQL_URL is not the URL of a MySQL or MariaDB"),
        ("mysql://localhost/shop", 2, "Give mysql://user:password@host:port, with no database."),
        ("no url", 2, "TALLYSTICK_MYSQL_URL is not the URL of a MySQL or MariaDB"),
        (
            "mysql://u:secret@127.0.0.1:1",
            1,
            "mysql+aiomysql://u:***@127.0.0.1:1/tallystick_user could not be migrated",
        ),
    ],
)
def test_a_server_that_cannot_be_migrated_is_named(capsys, monkeypatch, url, code, message):
    monkeypatch.setenv("TALLYSTICK_MYSQL_URL", url)

    found, text = said(capsys, "migrate", "--profile", "mysql")

    assert found == code
    assert message in text
    assert "secret" not in text


def test_migrating_a_server_makes_a_database_for_each_service(capsys, monkeypatch, mariadb):
    monkeypatch.setenv("TALLYSTICK_MYSQL_URL", mariadb.rstrip("/"))

    code, text = said(capsys, "migrate", "--profile", "mysql")

    assert (code, text) == (0, "Migrated: user, payment, fraud, offline, admin.\n")


def test_the_installed_program_answers():
    done = subprocess.run([*TALLYSTICK, "--help"], capture_output=True, text=True, check=True)

    assert "Payments that keep working when the network does not." in done.stdout
