"""The tier of every account."""

import sqlalchemy as sa
from alembic import op

revision = "user_0003"
down_revision = "user_0002"


def upgrade() -> None:
    """Add the columns: every account so far is where accounts start."""
    tier = sa.Column("tier", sa.String(16), nullable=False, server_default="BASIC")
    op.add_column("users", tier)
    reason = sa.Column("tier_reason", sa.String(500), nullable=False, server_default="")
    op.add_column("users", reason)
    op.create_index("users_tier", "users", ["tier", "user_id"])
