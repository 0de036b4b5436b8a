"""What an offline payment was paid with, kept until it is assessed."""

import sqlalchemy as sa
from alembic import op

revision = "payment_0003"
down_revision = "payment_0002"


def upgrade() -> None:
    """Widen payment_tasks. What the code before writes says nothing of it."""
    op.add_column("payment_tasks", sa.Column("code_age_micros", sa.BigInteger))
    op.add_column("payment_tasks", sa.Column("device", sa.String(64)))
