"""What tests of every service share: certificates, a real Valkey, real databases."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis
from hypothesis import settings
from sqlalchemy.engine import make_url
from uuid_utils import uuid4

from cli import mariadb as mariadb_server
from cli import pki, process, valkey
from services import sql
from services.environment import Tls

# What `make test` runs with: the same examples every time. `--hypothesis-profile=default` looks for new ones.
settings.register_profile("steady", derandomize=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much offline trade is simulated."""
    group = parser.getgroup(
        "simulation", "days of offline trade (tests/test_offline_simulation.py)"
    )
    group.addoption(
        "--simulated-days",
        type=int,
        default=1_000,
        metavar="N",
        help="ten days a run, each run with a seed of its own (default: %(default)s)",
    )
    group.addoption(
        "--simulation-seed",
        type=int,
        default=1,
        metavar="SEED",
        help="of the first run (default: %(default)s)",
    )


class DatabaseUrl(Protocol):
    """Makes databases: `database_url("user")` is a fresh one with that service's current schema."""

    def __call__(self, service: str) -> str: ...


@pytest.fixture(scope="session")
def tls_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tls]:
    """`tls_for("user")`: that service's certificate, of the one authority all tests share."""
    authority = pki.Authority(tmp_path_factory.mktemp("pki"), pki.INTERNAL, now=datetime.now(UTC))
    issued: dict[str, Tls] = {}

    def tls(service: str) -> Tls:
        if service not in issued:
            issued[service] = authority.issue_service(service)
        return issued[service]

    return tls


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    """A real Valkey for the whole session. Ask for `valkey_url`, which empties it first."""
    with valkey.running() as port:
        yield valkey.url(port)


@pytest.fixture
def valkey_url(valkey_server: str) -> str:
    """A real Valkey with nothing in it."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[str]:
    """The URL of a real MariaDB, with all rights and no database.

    A missing one is a failure, never a skip.
    """
    try:
        with mariadb_server.running() as url:
            yield url
    except process.StartError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def gateway(
    tls_for: Callable[[str], Tls], valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Envoy and its control plane, with stand-ins for the services, one for the whole session."""
    # Envoy's messages take a second to load, which only those who ask for them wait.
    from tests.gateway import running_gateway

    with running_gateway(tmp_path_factory.mktemp("gateway"), tls_for, valkey_server) as running:
        yield running


@pytest.fixture(scope="session")
def outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Somebody outside a whole running stack, one for the whole session."""
    from tests.outsider import outsider_of_a_stack

    with outsider_of_a_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def unchanged(outsider: Any) -> Iterator[None]:
    """Holds a test to having moved no money, made no account and changed none."""
    before = outsider.books()
    yield
    assert outsider.books() == before


@pytest.fixture(params=["sqlite", "mariadb"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Which database a test runs on: every test that asks for `database_url` runs on both.

    A test that needs one only says so: `@pytest.mark.parametrize("dialect", ["mariadb"])`.
    """
    value: str = request.param
    return value


@pytest.fixture
def database_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseUrl:
    """Fresh databases with a service's current schema, on SQLite and on MariaDB."""
    if dialect == "mariadb":
        server: str = request.getfixturevalue("mariadb")
        return lambda service: _mariadb_database(server, service)
    templates: Path = request.getfixturevalue("sqlite_templates")
    return lambda service: _sqlite_database(templates, tmp_path, service)


@pytest.fixture
async def bank(
    tls_for: Callable[[str], Tls], valkey_url: str, database_url: DatabaseUrl
) -> AsyncIterator[Any]:
    """A payment service on either database, and its surroundings. The laws must hold in the end."""
    from tests.payment_stack import payment_stack

    async with payment_stack(tls_for, valkey_url, database_url("payment")) as running:
        yield running


@pytest.fixture
async def market(
    tls_for: Callable[[str], Tls], valkey_url: str, database_url: DatabaseUrl, tmp_path: Path
) -> AsyncIterator[Any]:
    """An offline service over a real payment service, on either database. The laws must hold in the end."""
    from tests.offline_stack import offline_stack

    async with offline_stack(tls_for, valkey_url, database_url, tmp_path) as running:
        yield running


@pytest.fixture
def sqlite_url(sqlite_templates: Path, tmp_path: Path) -> DatabaseUrl:
    """Fresh SQLite databases only, for tests of what the database has no part in."""
    return lambda service: _sqlite_database(sqlite_templates, tmp_path, service)


@pytest.fixture(scope="session")
def sqlite_templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once for each service, then copied: migrating takes longer than most tests."""
    return tmp_path_factory.mktemp("sqlite")


def _sqlite_database(templates: Path, directory: Path, service: str) -> str:
    template = templates / f"{service}.db"
    if not template.exists():
        _run(lambda: sql.migrate(f"sqlite+aiosqlite:///{template}", service))
    path = directory / f"{service}-{uuid4().hex[:8]}.db"
    shutil.copyfile(template, path)
    return f"sqlite+aiosqlite:///{path}"


def _mariadb_database(server: str, service: str) -> str:
    name = f"tallystick_{service}_{uuid4().hex[:12]}"
    url = make_url(server).set(database=name).render_as_string(hide_password=False)
    _run(lambda: sql.migrate(url, service))
    return url


def _run(work: Callable[[], Any]) -> None:
    # In a thread, because an async test's own loop is running in this one.
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, work()).result()
