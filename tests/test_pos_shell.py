"""`tallystick pos` without network: what it prints, and its exit codes."""

import asyncio
import json
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest

from cli.__main__ import main
from pos.errors import PosError
from pos.shell import amount_text, parse_amount, span_text
from tests import offline_simulation
from tests.ledger_world import ASHA

UNREACHABLE = ("--address", "127.0.0.1:1")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The simulation's server and tills, on the machine's own clock, which the command reads."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    monkeypatch.setattr(offline_simulation, "START", midnight)
    simulation = offline_simulation.Simulation(1, tmp_path, days=1)
    simulation.now = now
    simulation.kill_chance = simulation.loss_chance = 0.0
    asyncio.run(simulation.tills[0].sync())
    yield simulation
    simulation.close()


@pytest.fixture
def pos(world, capsys):
    """Runs a command at a terminal; its exit code and its answer."""
    till = world.tills[0]
    till.kill()

    def run(command, *arguments):
        code = main(["pos", command, "--json", "--directory", str(till.directory), *arguments])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.parametrize(
    ("text", "currency", "minor_units"),
    [
        ("120.50", "INR", 120_50),
        ("120.5", "INR", 120_50),
        ("120", "INR", 120_00),
        ("120.", "INR", 120_00),
        (".5", "INR", 50),
        (" 1,234,567.89 ", "INR", 1_234_567_89),
        ("12,34,567", "INR", 12_34_567_00),
        ("500", "JPY", 500),
        ("1.234", "KWD", 1_234),
        ("92233720368547758.07", "INR", (1 << 63) - 1),
    ],
)
def test_amounts_as_people_write_them(text, currency, minor_units):
    assert parse_amount(text, currency) == minor_units
    assert parse_amount(amount_text(minor_units, currency), currency) == minor_units


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        *((text, "INR") for text in ("", ".", ",", "0", "0.00", "-1", "+1", "1.005", "1.500")),
        *((text, "INR") for text in ("1e3", "1_0", "0x10", "NaN", "Infinity", "1e999999999999")),
        # A decimal comma must not become a hundredfold price.
        *((text, "INR") for text in ("1,50", "1,5", "12,34", "1.234,56", ",500", "1,,000")),
        *(
            (text, "INR")
            for text in ("92233720368547758.08", "9" * 30, "\uff11\uff12", "1 000", "ten")
        ),
        ("1.5", "JPY"),
    ],
)
def test_what_is_no_amount_is_refused(text, currency):
    with pytest.raises(PosError) as refused:
        parse_amount(text, currency)

    assert refused.value.reason == "AMOUNT_INVALID"


def test_a_sale_its_list_and_its_status(world, pos):
    symbols = world.server.issue(ASHA, 100_00)

    sale = ("--code", symbols.lower(), "--currency", "INR", "--reference", "Order 7")
    code, refused = pos("accept", *sale, "--amount", "100.01")
    assert code == 1
    assert (refused["decision"], refused["reason"]) == ("REFUSED", "AMOUNT_OVER_VALUE")
    code, approved = pos("accept", *sale, "--amount", "80.5")
    assert code == 0
    assert (approved["decision"], approved["reason"]) == ("APPROVED_OFFLINE", "")
    code, again = pos("accept", *sale, "--amount", "80.5")
    assert (code, again["reason"]) == (1, "SPENT_HERE")

    code, listed = pos("list")
    assert code == 0
    assert [(item["item"], item["amount"], item["state"]) for item in listed["items"]] == [
        (approved["item"], "80.50", "STORED")
    ]
    code, status = pos("status")
    assert code == 0
    assert (status["state"], status["stored_count"]) == ("OFFLINE", 1)
    assert status["stored"] == {"INR": "80.50"}
    assert status["flaws"] == []


def test_a_terminal_moves_by_command(world, pos, tmp_path):
    (tmp_path / "word").write_text("correct horse\n")
    file = (str(tmp_path / "till.tsx"), "--passphrase-file", str(tmp_path / "word"))

    assert pos("export", *file)[0] == 0
    assert pos("import", *file)[1]["reason"] == "ALREADY_ENROLLED"
    moved, answer = pos("import", *file, "--directory", str(tmp_path / "new"), "--note", "till 2")
    assert (moved, answer["terminal"]) == (0, world.tills[0].network.name)
    symbols = world.server.issue(ASHA, 100_00)
    sale = ("--code", symbols, "--amount", "1", "--currency", "INR")
    assert pos("accept", *sale)[1]["reason"] == "MOVED"
    assert pos("accept", *sale, "--directory", str(tmp_path / "new"))[0] == 0


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("accept", ("--code", "0", "--amount", "1,50", "--currency", "INR"), "AMOUNT_INVALID"),
        ("accept", ("--spend", "TSS1:é", "--amount", "1", "--currency", "INR"), "VOUCHER_INVALID"),
        ("sync", UNREACHABLE, "UNREACHABLE"),
        ("sync", ("--ca-file", "/nowhere/ca.pem"), "STORAGE_FAILED"),
        ("export", ("/nowhere/till.tsx", "--passphrase-file", "/nowhere/word"), "STORAGE_FAILED"),
    ],
)
def test_what_fails_answers_a_program_too(pos, command, arguments, reason):
    code, answer = pos(command, *arguments)

    assert code == 1
    assert answer["reason"] == reason
    assert answer["message"]


def test_a_journal_somebody_tampered_with_is_told_of(world, pos):
    till = world.tills[0]
    assert till.sell(world.server.issue(ASHA, 10_00), 10_00)
    till.kill()
    database = sqlite3.connect(till.directory / "journal.db")
    database.execute("UPDATE entries SET sealed = zeroblob(100)")
    database.commit()
    database.close()

    code, answer = pos("status")

    assert code == 0
    assert answer["flaws"] == ["entry 1 was changed, or put in from elsewhere"]


def test_spans_of_time_in_words():
    minutes = {0: "0 m", 59: "59 m", 60: "1 h", 192: "3 h 12 m", 1440: "1 d", 3000: "2 d 2 h"}
    for number, words in minutes.items():
        assert span_text(timedelta(minutes=number)) == words
