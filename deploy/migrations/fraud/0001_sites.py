"""The vendors' sites, and how far the stream they come from has been read."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "fraud_0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "sites",
        sa.Column("vendor_id", sql.Id, primary_key=True),
        sa.Column("site_id", sql.Id, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("latitude", sa.Double, nullable=False),
        sa.Column("longitude", sa.Double, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
    )
    op.create_table(
        "stream_cursors",
        sa.Column("source", sa.String(16), primary_key=True),
        sa.Column("position", sa.String(41), nullable=False),
    )
