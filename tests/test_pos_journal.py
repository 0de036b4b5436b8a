"""The journal on disk: whole or not at all, and what was done to it afterwards is found."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from uuid_utils import UUID, uuid7

from pos import journal as journals
from pos.errors import PosError
from pos.journal import Journal
from pos.lockout import Lockout
from pos.vault import Cipher
from protocol import signed
from tallystick.offline.v1 import journal_pb2

KEY = Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32)
NAME = f"users/{UUID(int=7)}/terminals/{UUID(int=8)}"
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
SECRET = bytes([5]) * 32


def opened(directory):
    return Journal(
        directory / "journal.db", Cipher(SECRET, NAME.encode()), KEY, Cipher.derive(SECRET, b"m")
    )


def a_sale(minor_units=100_00, code="0" * 16):
    entry = journal_pb2.Entry(version=1, terminal=NAME, bundle_version=1)
    entry.record_time.FromDatetime(NOW)
    entry.server_time.FromDatetime(NOW - timedelta(hours=1))
    entry.sale.item_id = str(uuid7())
    entry.sale.code = code
    entry.sale.amount.minor_units = minor_units
    entry.sale.amount.currency_code = "INR"
    return entry


def with_sales(directory, count):
    journal = opened(directory)
    for number in range(count):
        journal.append(a_sale(code=f"{number:016d}"), symbols=f"{number:016d}")
    journal.close()


def edit(directory, *statements):
    database = sqlite3.connect(directory / "journal.db")
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def flaws(directory):
    journal = opened(directory)
    found = [(flaw.sequence, flaw.what) for flaw in journal.flaws]
    journal.close()
    return found


def test_entries_are_numbered_chained_and_signed(tmp_path):
    with_sales(tmp_path, 3)
    journal = opened(tmp_path)
    upload = journal.begin_upload("r1", size=500)
    journal.close()

    previous = signed.GENESIS
    for number, (sequence, travelling) in enumerate(upload.entries, 1):
        entry = signed.verify_entry(travelling, KEY.public_key().public_bytes_raw())
        assert sequence == entry.sequence == number
        assert entry.previous_hash == previous
        previous = signed.entry_hash(travelling.content)
    assert flaws(tmp_path) == []


def test_what_lies_on_disk_tells_no_code_and_no_reference(tmp_path):
    journal = opened(tmp_path)
    entry = a_sale(code="ABCDEFGHJKMNPQRS")
    entry.sale.reference = "Order of Asha"
    journal.append(entry, symbols=entry.sale.code)
    journal.close()

    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ABCDEFGHJKMNPQRS" not in content
    assert b"Asha" not in content
    assert NAME.encode() not in content


def test_a_changed_row_is_named_and_the_others_stay(tmp_path):
    with_sales(tmp_path, 4)
    edit(tmp_path, "UPDATE entries SET sealed = zeroblob(200) WHERE sequence = 2")

    assert flaws(tmp_path) == [(2, "was changed, or put in from elsewhere")]
    journal = opened(tmp_path)
    assert [sale.sequence for sale in journal.sales()] == [1, 3, 4]
    assert [number for number, _ in journal.begin_upload("r", size=500).entries] == [1, 3, 4]
    journal.close()


def test_a_missing_row_is_named(tmp_path):
    with_sales(tmp_path, 4)
    edit(tmp_path, "DELETE FROM entries WHERE sequence = 3")

    assert flaws(tmp_path) == [(3, "is missing")]


def test_rows_missing_at_the_end_are_named_and_their_numbers_not_used_again(tmp_path):
    with_sales(tmp_path, 4)
    edit(tmp_path, "DELETE FROM entries WHERE sequence > 2")

    assert flaws(tmp_path) == [(3, "entries 3 to 4 are missing")]
    journal = opened(tmp_path)
    assert journal.append(a_sale()).sequence == 5
    journal.close()


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM kept WHERE name = 'head'", "UPDATE kept SET sealed = zeroblob(68)"],
)
def test_a_terminal_whose_record_of_the_last_entry_is_gone_says_so_and_sells_on(
    tmp_path, statement
):
    with_sales(tmp_path, 3)
    edit(tmp_path, statement)

    assert flaws(tmp_path) == [(3, "may not be the last: the record of it is gone")]
    journal = opened(tmp_path)
    assert journal.append(a_sale()).sequence == 4
    journal.close()
    assert flaws(tmp_path) == []


def test_broken_rows_do_not_stand_in_the_way_of_whole_ones(tmp_path):
    with_sales(tmp_path, 8)
    edit(tmp_path, "UPDATE entries SET sealed = zeroblob(200) WHERE sequence <= 5")

    journal = opened(tmp_path)
    assert [number for number, _ in journal.begin_upload("r1", size=2).entries] == [6, 7]
    assert [number for number, _ in journal.begin_upload("r2", size=2).entries] == [8]
    assert journal.begin_upload("r3", size=2) is None
    journal.close()


def test_rows_that_changed_places_are_named(tmp_path):
    with_sales(tmp_path, 3)
    edit(
        tmp_path,
        "UPDATE entries SET sequence = 99 WHERE sequence = 1",
        "UPDATE entries SET sequence = 1 WHERE sequence = 2",
        "UPDATE entries SET sequence = 2 WHERE sequence = 99",
    )

    assert [number for number, _ in flaws(tmp_path)] == [1, 2]


def test_a_row_of_another_terminal_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "own").mkdir()
    with_sales(tmp_path / "own", 2)
    other = Journal(tmp_path / "other" / "journal.db", Cipher(SECRET, b"another"), KEY, bytes(32))
    other.append(a_sale())
    other.close()
    edit(
        tmp_path / "own",
        f"ATTACH '{tmp_path / 'other' / 'journal.db'}' AS other",
        "UPDATE entries SET sealed = (SELECT sealed FROM other.entries) WHERE sequence = 1",
    )

    assert [number for number, _ in flaws(tmp_path / "own")] == [1]


def test_a_row_that_another_key_signed_is_named(tmp_path):
    other = Ed25519PrivateKey.from_private_bytes(bytes([4]) * 32)
    forger = Journal(
        tmp_path / "journal.db",
        Cipher(SECRET, NAME.encode()),
        other,
        Cipher.derive(SECRET, b"m"),
    )
    forger.append(a_sale())
    forger.close()

    assert flaws(tmp_path) == [(1, "is not signed by this terminal")]


def test_a_code_taken_here_is_known_after_a_restart(tmp_path):
    with_sales(tmp_path, 2)

    journal = opened(tmp_path)
    assert journal.is_spent("0000000000000001")
    assert not journal.is_spent("0000000000000009")
    assert journal.stored == (2, {"INR": 200_00})
    journal.close()


def test_a_restart_forgives_no_wrong_code(tmp_path):
    journal = opened(tmp_path)
    ladder = Lockout(4, NOW + timedelta(seconds=20), 2)
    journal.save_lockout(ladder)
    journal.close()

    journal = opened(tmp_path)
    assert journal.lockout() == ladder
    journal.close()


def test_an_upload_is_remembered_until_it_has_a_receipt(tmp_path):
    with_sales(tmp_path, 5)
    journal = opened(tmp_path)
    first = journal.begin_upload("r1", size=3)
    journal.close()

    journal = opened(tmp_path)
    assert journal.open_uploads() == [first], "the same entries under the same request id"
    journal.receive(first, "batches/1", b"receipt", {2: ("ENTRY_MALFORMED", "broken")})
    assert journal.open_uploads() == []
    assert journal.undecided_batches() == ["batches/1"]
    assert [number for number, _ in journal.begin_upload("r2", size=3).entries] == [4, 5]
    assert journal.stored == (2, {"INR": 200_00})
    states = [(sale.sequence, sale.is_received, sale.state) for sale in journal.sales()]
    assert states[:3] == [(1, True, ""), (2, True, "REFUSED"), (3, True, "")]
    journal.close()


def test_an_upload_that_is_refused_whole_is_halved(tmp_path):
    with_sales(tmp_path, 3)
    journal = opened(tmp_path)
    journal.split_upload(journal.begin_upload("r1", size=500), ["r2", "r3"])

    parts = [[number for number, _ in upload.entries] for upload in journal.open_uploads()]
    assert parts == [[1, 2], [3]]
    journal.close()


def test_a_journal_of_the_version_before_opens_in_this_one(tmp_path):
    database = sqlite3.connect(tmp_path / "journal.db")
    database.executescript(journals.MIGRATIONS[0])
    database.execute("PRAGMA user_version = 1")
    cipher = Cipher(SECRET, NAME.encode())
    entry = a_sale()
    entry.sequence, entry.previous_hash = 1, signed.GENESIS
    travelling = signed.sign_entry(entry, KEY)
    entry_hash = signed.entry_hash(travelling.content)
    sealed = cipher.seal(travelling.SerializeToString(), "entry 1")
    head = cipher.seal((1).to_bytes(8, "big") + entry_hash, "kept head")
    database.execute(
        "INSERT INTO entries (sequence, entry_hash, sealed, item_id) VALUES (1, ?, ?, ?)",
        (entry_hash, sealed, entry.sale.item_id),
    )
    database.execute("INSERT INTO kept VALUES ('head', ?)", (head,))
    database.commit()
    database.close()

    journal = opened(tmp_path)
    assert journal.flaws == []
    assert [sale.item_id for sale in journal.sales()] == [entry.sale.item_id]
    assert journal.append(a_sale()).sequence == 2
    journal.close()


def test_a_journal_of_a_newer_version_is_left_alone(tmp_path):
    with_sales(tmp_path, 1)
    edit(tmp_path, "PRAGMA user_version = 99")

    with pytest.raises(PosError) as refused:
        opened(tmp_path)
    assert refused.value.reason == "JOURNAL_NEWER"


def test_a_file_that_is_no_journal_says_so(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"not a database" * 100)

    with pytest.raises(PosError) as refused:
        opened(tmp_path)
    assert refused.value.reason == "DAMAGED"


SELLER = textwrap.dedent("""
    import sys
    sys.path[:0] = sys.argv[2:]
    from pathlib import Path
    from tests.test_pos_journal import a_sale, opened
    journal = opened(Path(sys.argv[1]))
    print("ready", flush=True)
    while True:
        entry = journal.append(a_sale())
        print(entry.sequence, flush=True)
""")


def test_a_terminal_killed_while_it_sells_has_every_sale_it_told_of(tmp_path):
    for turn in range(5):
        root = Path(__file__).parents[1]
        seller = subprocess.Popen(
            [sys.executable, "-c", SELLER, str(tmp_path), str(root), str(root / "gen")],
            stdout=subprocess.PIPE,
            text=True,
        )
        told = [seller.stdout.readline() for _ in range(4 + turn * 3)]
        os.kill(seller.pid, signal.SIGKILL)
        rest = seller.communicate()[0].splitlines()
        last = int([*told, *rest][-1])

        journal = opened(tmp_path)
        assert journal.flaws == []
        assert journal.head[0] >= last
        assert [sale.sequence for sale in journal.sales()] == list(range(1, journal.head[0] + 1))
        journal.close()
