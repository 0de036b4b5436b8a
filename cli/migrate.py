"""`tallystick migrate`: every service's schema to the current version."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from cli import databases
from cli.process import StartError
from services import sql
from services.environment import Environment


def run(profile: str, data: Path) -> int:
    """Migrate the databases of a profile.

    Raises:
        SettingError: profile mysql, and `TALLYSTICK_MYSQL_URL` is not set or wrong.
        StartError: a database refused.
    """
    asyncio.run(migrate(databases.of_profile(profile, data, Environment())))
    print(f"Migrated: {', '.join(databases.OWNERS)}.")
    return 0


async def migrate(urls: Mapping[str, str]) -> None:
    """Make each database where it is missing and bring its schema to the current version.

    Raises:
        StartError: a database refused; names it, without its password.
    """
    for service, url in urls.items():
        try:
            await sql.migrate(url, service)
        except DBAPIError as error:
            where = make_url(url).render_as_string(hide_password=True)
            raise StartError(f"{where} could not be migrated: {error.orig}") from error
