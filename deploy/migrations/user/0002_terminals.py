"""Terminals, and the assertions they have used."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "user_0002"
down_revision = "user_0001"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "terminals",
        sa.Column("vendor_id", sql.Id, primary_key=True),
        sa.Column("terminal_id", sql.Id, primary_key=True),
        sa.Column("display_name", sa.String(120), nullable=False),
        sa.Column("site_id", sql.Id, nullable=False),
        sa.Column("scope", sa.String(32), nullable=False),
        sa.Column("public_key", sql.binary(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.Column("revoke_time", sql.Instant, nullable=True),
        sa.Column("revoke_reason", sa.String(500), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Index("terminals_public_key", "public_key", unique=True),
        sa.Index("terminals_revoke_time", "revoke_time"),
    )
    op.create_table(
        "assertions",
        sa.Column("terminal_id", sql.Id, primary_key=True),
        sa.Column("assertion_id", sql.Id, primary_key=True),
        sa.Column("expire_time", sql.Instant, nullable=False),
        sa.Index("assertions_expire_time", "expire_time"),
    )
