"""`tallystick migrate`: every service's schema to the current version."""

from __future__ import annotations

from collections.abc import Mapping

from services import sql


async def migrate(urls: Mapping[str, str]) -> None:
    """Make each database where it is missing and bring its schema to the current version."""
    for service, url in urls.items():
        await sql.migrate(url, service)
