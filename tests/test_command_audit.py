"""`tallystick audit`: what it says of books that balance, and of books that do not."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from uuid_utils import UUID

from cli.__main__ import main
from cli.stack.endpoints import Endpoints, Service, read
from services import sql
from services.offline.store import tables


@pytest.fixture
def run_directory(tmp_path, database_url):
    """A run directory whose payment service has an empty ledger, and whose offline service knows no code."""
    services = {
        name: Service("127.0.0.1:1", database_url(name), 1, f"{name}.log")
        for name in ("payment", "offline")
    }
    Endpoints(
        grpc="127.0.0.1:1",
        grpc_web="https://127.0.0.1:1",
        ca_file="ca.pem",
        admin_user="admin",
        admin_password_file="admin-password",
        services=services,
        processes={},
        redis_url="redis://127.0.0.1:1/0",
        envoy_admin="http://127.0.0.1:1",
        profile="dev",
    ).write(tmp_path / "endpoints.json")
    return tmp_path


def invent_money(run_directory):
    """Put 1.00 into a wallet from nowhere."""
    row = {"wallet_id": bytes(16) + b"INR", "online": 100, "is_system": 0, "active": 1}
    row |= dict.fromkeys(("offline", "reserved", "held", "is_vendor", "owner_version"), 0)
    wallets = sa.table("wallets", *map(sa.column, row), sa.column("update_time"))

    async def insert():
        engine = sql.create_engine(
            read(run_directory / "endpoints.json").services["payment"].database_url
        )
        async with engine.begin() as connection:
            await connection.execute(sa.insert(wallets).values(**row, update_time=0))
        await engine.dispose()

    asyncio.run(insert())


def audited(capsys, run_directory):
    """Exit code, what was printed, what was written. Runs the command as a person does."""
    file = run_directory / "audit.json"
    code = main(["audit", "--run-dir", str(run_directory), "--json", str(file)])
    return code, capsys.readouterr().out, json.loads(file.read_text())


def test_books_that_balance_hold_every_law(capsys, run_directory):
    code, text, written = audited(capsys, run_directory)

    assert code == 0
    assert "NO" not in text
    assert set(written["laws"]) == {str(law) for law in range(1, 10)}
    for law in written["laws"].values():
        assert law["holds"] is True
        assert law["first_broken"] is None


def test_money_from_nowhere_is_found_and_the_first_broken_row_is_named(capsys, run_directory):
    invent_money(run_directory)

    code, text, written = audited(capsys, run_directory)

    assert code == 1
    assert written["laws"]["1"]["holds"] is False
    assert written["laws"]["1"]["first_broken"] == "INR: all balances sum to 100"
    assert "Law 1 is broken first by INR: all balances sum to 100" in text
    assert written["laws"]["2"]["holds"] is True
    assert written["laws"]["3"]["holds"] is False


def test_a_code_that_nothing_backs_is_found_too(capsys, run_directory):
    row = {"currency_code": "INR", "minor_units": 100, "hint": "0000", "scope": "main"}
    row |= {"code_id": UUID(int=7), "state": 2, "release_step": 0, "filter_key": bytes(8)}
    row |= dict.fromkeys(("issue_id", "owner_id"), UUID(int=8))
    row |= dict.fromkeys(("code_hash", "voucher_hash"), bytes(32))
    times = ("issue_time", "expire_time", "release_time", "update_time")
    row |= dict.fromkeys(times, datetime(2026, 3, 1, tzinfo=UTC))

    async def insert():
        engine = sql.create_engine(
            read(run_directory / "endpoints.json").services["offline"].database_url
        )
        async with engine.begin() as connection:
            await connection.execute(sa.insert(tables.codes).values(row))
        await engine.dispose()

    asyncio.run(insert())

    code, text, written = audited(capsys, run_directory)

    assert code == 1
    assert "Law 6 is broken first by codes/00000000-0000-0000-0000-000000000007" in text
    assert written["laws"]["6"]["holds"] is False
