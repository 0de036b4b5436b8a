"""A terminal's directory: moved to another installation, damaged, or of the version before."""

import asyncio
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pos import transfer
from pos.decision import Refusal, Typed
from pos.errors import PosError
from pos.terminal import Terminal
from pos.vault import Vault
from tests.ledger_world import ASHA
from tests.offline_simulation import Simulation

KEPT = Path(__file__).parent / "journals"
PASSPHRASE = "correct horse"


@pytest.fixture
async def world(tmp_path):
    simulation = Simulation(1, tmp_path, days=1)
    simulation.kill_chance = simulation.loss_chance = 0.0
    await simulation.tills[0].sync()
    yield simulation
    simulation.close()


@pytest.fixture
def till(world):
    return world.tills[0]


async def exported(world, till, file):
    assert till.sell(world.server.issue(ASHA, 10_00), 10_00)
    await transfer.export(till.running, till.directory, file, PASSPHRASE)
    return file


async def restored(directory, file, passphrase=PASSPHRASE):
    await asyncio.to_thread(transfer.restore, directory, file, passphrase)


def reason(refused):
    return refused.value.reason


async def test_an_export_is_for_its_owner_and_tells_nothing_without_the_passphrase(
    world, till, tmp_path
):
    file = await exported(world, till, tmp_path / "till.tsx")

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes()
    assert (till.directory / "secret").read_bytes()[:32] not in content
    assert till.network.name.encode() not in content
    assert b"SQLite" not in content


async def test_a_moved_journal_goes_on_with_its_numbers(world, till, tmp_path):
    file = await exported(world, till, tmp_path / "till.tsx")
    code = world.server.issue(ASHA, 10_00)
    refused = await till.running.accept(Typed(code), 10_00, "INR")
    assert refused.refusal is Refusal.MOVED
    # What an enrolment that was broken off there may have left.
    new = tmp_path / "new"
    new.mkdir()
    (new / "journal.db-wal").write_bytes(b"of another journal")

    await restored(new, file)

    async with Terminal.open(new, "127.0.0.1:1", wall=world.clock) as here:
        assert here.status().flaws == ()
        await here.note_import("till 2")
        assert (await here.accept(Typed(code), 10_00, "INR")).approved
        assert [sale.sequence for sale in here.sales()] == [1, 3]
        assert here.status().stored_count == 2


async def test_an_export_can_be_made_again_when_the_first_was_broken_off(world, till, tmp_path):
    await till.running.mark_moved()

    await transfer.export(till.running, till.directory, tmp_path / "second.tsx", PASSPHRASE)

    await restored(tmp_path / "new", tmp_path / "second.tsx")
    assert Vault(tmp_path / "new").identity() == till.running.identity


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: b"", "NOT_AN_EXPORT"),
        (lambda content: b"PK" + content, "NOT_AN_EXPORT"),
        (lambda content: content[:31], "NOT_AN_EXPORT"),
        (lambda content: content[:-1], "PASSPHRASE_WRONG"),
        (
            lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
            "PASSPHRASE_WRONG",
        ),
    ],
    ids=["empty", "another file", "cut in its head", "cut off", "one bit changed"],
)
async def test_what_is_no_whole_export_makes_no_terminal(world, till, tmp_path, change, expected):
    file = await exported(world, till, tmp_path / "till.tsx")
    file.write_bytes(change(file.read_bytes()))

    with pytest.raises(PosError) as refused:
        await restored(tmp_path / "new", file)

    assert reason(refused) == expected
    assert not Vault(tmp_path / "new").is_enrolled()


async def test_an_export_is_refused_before_anything_moves(world, till, tmp_path):
    file = await exported(world, till, tmp_path / "till.tsx")
    other = world.tills[1]
    await other.sync()

    with pytest.raises(PosError) as refused:
        await transfer.export(other.running, other.directory, tmp_path / "short.tsx", "1234567")
    assert reason(refused) == "PASSPHRASE_SHORT"
    with pytest.raises(PosError) as refused:
        await transfer.export(other.running, other.directory, file, PASSPHRASE)
    assert reason(refused) == "FILE_EXISTS"
    assert other.sell(world.server.issue(ASHA, 10_00), 10_00), "it still sells"
    with pytest.raises(PosError) as refused:
        await restored(other.directory, file)
    assert reason(refused) == "ALREADY_ENROLLED"


async def test_a_directory_in_use_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("pos.vault._LOCK_SECONDS", 0.0)
    vault = Vault(tmp_path / "till")
    with vault.claim(), pytest.raises(PosError) as refused, Vault(tmp_path / "till").claim():
        pass

    assert reason(refused) == "IN_USE"
    assert stat.S_IMODE(vault.directory.stat().st_mode) == 0o700


async def test_a_lost_key_is_not_replaced_in_silence(world, till):
    till.kill()
    (till.directory / "secret").unlink()

    with pytest.raises(PosError) as refused:
        till.start()

    assert reason(refused) == "DAMAGED"
    assert not (till.directory / "secret").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 1}'])
async def test_a_damaged_identity_says_so(till, content):
    till.kill()
    (till.directory / "terminal.json").write_text(content)

    with pytest.raises(PosError) as refused:
        till.start()

    assert reason(refused) == "DAMAGED"


async def test_no_terminal_says_how_to_make_one(tmp_path):
    with pytest.raises(PosError, match="tallystick pos enroll") as refused:
        async with Terminal.open(tmp_path, "127.0.0.1:1"):
            pass

    assert reason(refused) == "NOT_ENROLLED"


@pytest.mark.parametrize("version", ["1", "2"])
async def test_a_directory_that_an_earlier_version_wrote_opens_and_sells(tmp_path, version):
    """As it lay on disk then: three sales, the first two uploaded, and a code that is still good."""
    shutil.copytree(KEPT / f"version-{version}", tmp_path / "till")
    code = (tmp_path / "till" / "unspent-code").read_text().strip()
    now = datetime(2026, 3, 2, 19, tzinfo=UTC)

    async with Terminal.open(tmp_path / "till", "127.0.0.1:1", wall=lambda: now) as till:
        assert till.status().flaws == ()
        assert [(sale.sequence, sale.minor_units, sale.is_received) for sale in till.sales()] == [
            (1, 10_00, True),
            (2, 10_00, True),
            (3, 7_50, False),
        ]
        assert till.status().stored == {"INR": 7_50}
        assert (await till.accept(Typed(code), 10_00, "INR")).approved
        assert till.sales()[-1].sequence == 4
        assert till.sales()[-1].record_time - now < timedelta(minutes=1)
