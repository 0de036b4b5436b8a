"""The tiers of payers who were ever above the lowest one."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "fraud_0004"
down_revision = "fraud_0003"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "tiers",
        sa.Column("payer_id", sql.Id, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("tier", sa.String(16), nullable=False),
    )
