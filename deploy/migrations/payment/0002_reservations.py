"""Reservations behind offline codes, and what is known of offline payments."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "payment_0002"
down_revision = "payment_0001"


def upgrade() -> None:
    """Create the table, widen payments."""
    op.create_table(
        "reservations",
        sa.Column("reservation_id", sql.Id, primary_key=True),
        sa.Column("wallet_id", sql.binary(19), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("payment_id", sql.Id),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.Column("update_time", sql.Instant, nullable=False),
        sa.CheckConstraint("amount > 0", name="reservations_amount_above_zero"),
    )
    op.create_index("reservations_by_wallet", "reservations", ["wallet_id", "state"])
    # Nothing of it hinders the code before: what it writes are online payments.
    op.add_column(
        "payments", sa.Column("channel", sa.SmallInteger, nullable=False, server_default="1")
    )
    op.add_column("payments", sa.Column("terminal_id", sql.Id))
    op.add_column("payments", sa.Column("reservation_id", sql.Id))
    op.add_column("payments", sa.Column("spend_time", sql.Instant))
