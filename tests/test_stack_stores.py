"""The private Valkey and MariaDB of a stack."""

import contextlib

import pytest
import redis
import sqlalchemy as sa

from cli import mariadb, process, valkey
from cli.mariadb import Account
from services import sql


@contextlib.contextmanager
def started(command, answers, log):
    server = process.start(command, log=log)
    try:
        process.wait_until(answers, server, name="The server", log=log)
        yield server
    finally:
        process.stop(server, grace_seconds=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data directory as `install` makes it. Tests start one server on it at a time."""
    directory = tmp_path_factory.mktemp("a name with spaces") / "data"
    mariadb.install(directory)
    return directory


@pytest.fixture
def server(data, tmp_path):
    """Starts a durable server that knows some accounts; gives its port."""

    @contextlib.contextmanager
    def start(*accounts):
        file = tmp_path / "accounts.sql"
        mariadb.write_accounts(file, accounts)
        assert file.stat().st_mode & 0o777 == 0o600
        port = process.free_port()
        command = mariadb.command(port, data, file, durable=True)
        with started(command, lambda: mariadb.answers(port), tmp_path / "mariadb.log"):
            yield port

    return start


async def scalar(url, statement):
    engine = sql.create_engine(url)
    try:
        async with engine.begin() as connection:
            return (await connection.execute(sa.text(statement))).scalar()
    finally:
        await engine.dispose()


async def execute(url, statement):
    engine = sql.create_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.execute(sa.text(statement))
    finally:
        await engine.dispose()


USER = Account("tallystick_user", "one", "tallystick_user")
PAYMENT = Account("tallystick_payment", "two", "tallystick_payment")


async def test_a_service_reaches_its_own_database_and_no_other(server):
    with server(USER, PAYMENT) as port:
        assert await scalar(mariadb.url(port, USER), "SELECT DATABASE()") == "tallystick_user"

        stranger = Account(USER.user, USER.password, PAYMENT.database)
        with pytest.raises(sa.exc.OperationalError, match="Access denied"):
            await scalar(mariadb.url(port, stranger), "SELECT 1")
        with pytest.raises(sa.exc.OperationalError, match="Access denied"):
            # "_" in a grant stands for any character unless it is escaped.
            await execute(mariadb.url(port, USER), "CREATE DATABASE tallystickXuser")


async def test_nobody_comes_in_with_a_wrong_password_or_as_root(server):
    with server(USER) as port:
        for user, password in (("tallystick_user", "guessed"), ("root", "")):
            with pytest.raises(sa.exc.OperationalError, match="Access denied"):
                await scalar(mariadb.url(port, Account(user, password)), "SELECT 1")


async def test_data_stays_and_passwords_change_with_every_start(server):
    with server(USER) as port:
        await execute(mariadb.url(port, USER), "CREATE OR REPLACE TABLE kept AS SELECT 42 AS n")
    renewed = Account(USER.user, "three", USER.database)

    with server(renewed) as port:
        assert await scalar(mariadb.url(port, renewed), "SELECT n FROM kept") == 42
        with pytest.raises(sa.exc.OperationalError, match="Access denied"):
            await scalar(mariadb.url(port, USER), "SELECT 1")


async def test_a_durable_server_flushes_at_every_commit(server):
    with server(USER) as port:
        url = mariadb.url(port, USER)
        assert await scalar(url, "SELECT @@innodb_flush_log_at_trx_commit") == 1
        assert await scalar(url, "SELECT @@innodb_doublewrite") == 1


def test_a_missing_mariadb_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(process.shutil, "which", lambda *_, **__: None)

    with pytest.raises(
        process.StartError,
        match=r"mariadb-install-db is not installed\. As root: apt-get install "
        r"--no-install-recommends mariadb-server-core mariadb-client-core",
    ):
        mariadb.install(tmp_path / "data")


def test_an_installation_that_was_cut_off_is_done_again(tmp_path):
    part = tmp_path / "data.part"
    part.mkdir()
    (part / "ibdata1").write_bytes(b"half")

    mariadb.install(tmp_path / "data")

    assert (tmp_path / "data" / "mysql").is_dir()
    assert not part.exists()


def test_a_persistent_valkey_keeps_what_it_acknowledged_when_it_is_killed(tmp_path):
    port = process.free_port()
    command = valkey.command(port, tmp_path, persistent=True)
    log = tmp_path / "valkey.log"
    with started(command, lambda: valkey.answers(port), log) as server:
        with redis.Redis.from_url(valkey.url(port)) as client:
            client.xadd("events:user", {"id": "1"})
        server.kill()

    with (
        started(command, lambda: valkey.answers(port), log),
        redis.Redis.from_url(valkey.url(port)) as client,
    ):
        assert client.xlen("events:user") == 1


def test_a_server_that_cannot_start_is_an_error_that_quotes_its_log(tmp_path):
    log = tmp_path / "valkey.log"
    command = [*valkey.command(process.free_port(), tmp_path, persistent=False), "--no-such", "1"]

    with (
        pytest.raises(process.StartError, match=r"(?s)The server ended with code 1.*no-such"),
        started(command, lambda: False, log),
    ):
        pass
