"""Every list of features that payments were judged on: it outlives the code it was part of."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "fraud_0003"
down_revision = "fraud_0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "feature_lists",
        sa.Column("version", sa.String(16), primary_key=True),
        sa.Column("features", sql.blob(), nullable=False),
    )
