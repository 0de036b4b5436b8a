"""What must be true before services start: schemas are current, and somebody can sign in.

A process of its own, `python -m cli.stack.prepare DATA`: the supervisor stays small and forks nothing
after threads and drivers are loaded.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from cli import databases
from cli.migrate import migrate
from cli.process import StartError
from cli.stack.layout import Layout, write_secret
from services import sql
from services.user.bootstrap import create_first_admin


async def prepare(layout: Layout) -> None:
    """Migrate every database, then make the first admin where there is none.

    Raises:
        StartError: a database refused.
    """
    urls = databases.from_variables()
    await migrate(urls)
    engine = sql.create_engine(urls["user"])
    try:
        admin = await create_first_admin(engine)
    finally:
        await engine.dispose()
    if admin is not None:
        write_secret(layout.admin_user_file, admin.username + "\n")
        write_secret(layout.admin_password_file, admin.password + "\n")


def main() -> int:
    """Run it for the data directory named; 1 when a database refused."""
    try:
        asyncio.run(prepare(Layout(run=Path(), data=Path(sys.argv[1]))))
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
