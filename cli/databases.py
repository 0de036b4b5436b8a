"""Which services have a database, and where each one's is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from services.environment import PREFIX, Environment, SettingError

DEV = "dev"
MYSQL = "mysql"
PROFILES = (DEV, MYSQL)

OWNERS = ("user", "payment", "fraud", "offline", "admin")

# A server on which databases may be made, as a URL without one: profile mysql.
SERVER = "MYSQL_URL"
# Every service's URL as JSON: how `tallystick up` hands them to the process that migrates.
_URLS = "DATABASE_URLS"


def name(service: str) -> str:
    """The database of a service on a shared server."""
    return f"tallystick_{service}"


def of_profile(profile: str, data: Path, environment: Environment) -> dict[str, str]:
    """Each service's URL: in profile dev a SQLite file, in profile mysql a database on the server.

    Raises:
        SettingError: profile mysql, and `TALLYSTICK_MYSQL_URL` is not set or wrong.
    """
    if profile == DEV:
        return {service: f"sqlite+aiosqlite:///{data / service}.db" for service in OWNERS}
    return _on_server(environment)


def _on_server(environment: Environment) -> dict[str, str]:
    # Loading SQLAlchemy takes a quarter of a second, which `tallystick --help` need not wait.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    value = environment.text(SERVER)
    try:
        server = make_url(value)
    except ArgumentError:
        server = None
    if server is None or server.get_backend_name() not in {"mysql", "mariadb"} or server.database:
        raise SettingError(
            f"{PREFIX}{SERVER} is not the URL of a MySQL or MariaDB server. "
            "Give mysql://user:password@host:port, with no database."
        )
    server = server.set(drivername="mysql+aiomysql")
    return {
        service: server.set(database=name(service)).render_as_string(hide_password=False)
        for service in OWNERS
    }


def to_variables(urls: Mapping[str, str]) -> dict[str, str]:
    """The URLs as environment variables: they hold passwords, and arguments are there to see."""
    return {PREFIX + _URLS: json.dumps(dict(urls))}


def from_variables() -> dict[str, str]:
    """What `to_variables` wrote."""
    urls: dict[str, str] = json.loads(os.environ[PREFIX + _URLS])
    return urls
