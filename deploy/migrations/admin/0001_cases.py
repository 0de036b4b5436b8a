"""Cases, and the event log."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "admin_0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "cases",
        sa.Column("case_id", sql.Id, primary_key=True),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("subject_id", sql.Id, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("subject", sql.blob(), nullable=False),
        sa.Column("decision", sa.SmallInteger),
        sa.Column("decider_id", sql.Id),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("create_time", sql.Instant),
        sa.Column("decide_time", sql.Instant),
        sa.UniqueConstraint("kind", "subject_id", name="cases_subject"),
        sa.Index("cases_state", "state", "case_id"),
        sa.Index("cases_kind_state", "kind", "state", "case_id"),
    )
    op.create_table(
        "event_log",
        sa.Column("log_id", sql.serial(), primary_key=True, autoincrement=True),
        sa.Column("events", sql.blob(), nullable=False),
        sa.Column("relayed", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Index("event_log_relayed", "relayed", "log_id"),
    )
