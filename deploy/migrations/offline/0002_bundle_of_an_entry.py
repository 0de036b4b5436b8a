"""The trust bundle that an entry names: whether the terminal was told the time since the entry before it."""

import sqlalchemy as sa
from alembic import op

revision = "offline_0002"
down_revision = "offline_0001"


def upgrade() -> None:
    """Widen entries. What the code before writes gets 0."""
    op.add_column(
        "entries", sa.Column("bundle_version", sa.BigInteger, nullable=False, server_default="0")
    )
