"""Rules, lists, assessments with their labels, alerts, offline risk, and the event log."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "fraud_0002"
down_revision = "fraud_0001"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "rules",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("expression", sa.String(1000), nullable=False),
        sa.Column("action", sa.SmallInteger, nullable=False),
        sa.Column("mode", sa.SmallInteger, nullable=False),
        sa.Column("weight", sa.SmallInteger, nullable=False),
        sa.Column("detail", sa.String(200), nullable=False),
        sa.Column("author", sa.String(80), nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
    )
    op.create_table(
        "rule_revision",
        sa.Column("revision_id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "entries",
        sa.Column("list", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("entity", sa.String(80), primary_key=True),
        sa.Column("expire_time", sql.Instant, nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("author", sa.String(80), nullable=False),
    )
    op.create_table(
        "suppressions",
        sa.Column("rule", sa.String(40), primary_key=True),
        sa.Column("entity", sa.String(80), primary_key=True),
        sa.Column("expire_time", sql.Instant, nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("author", sa.String(80), nullable=False),
    )
    op.create_table(
        "assessments",
        sa.Column("payment_id", sql.Id, primary_key=True),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.Column("decision", sa.SmallInteger, nullable=False),
        sa.Column("model_score", sa.SmallInteger, nullable=False),
        sa.Column("signalled", sa.SmallInteger, nullable=False),
        sa.Column("record", sql.blob(), nullable=False),
        sa.Column("features", sql.blob(), nullable=False),
        sa.Column("label", sa.SmallInteger, nullable=False),
        sa.Column("label_record", sql.blob()),
        sa.Index("assessments_by_time", "create_time"),
        sa.Index("assessments_by_label", "label", "create_time"),
    )
    op.create_table(
        "label_tasks",
        sa.Column("payment_id", sql.Id, primary_key=True),
    )
    op.create_table(
        "alerts",
        sa.Column("alert_id", sql.Id, primary_key=True),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("decision", sa.SmallInteger, nullable=False),
        sa.Column("score", sa.SmallInteger, nullable=False),
        sa.Column("payer_id", sql.Id),
        sa.Column("vendor_id", sql.Id),
        sa.Column("reasons", sa.String(500), nullable=False),
        sa.Column("record", sql.blob(), nullable=False),
        sa.Index("alerts_by_time", "create_time"),
    )
    op.create_table(
        "offline_risks",
        sa.Column("payer_id", sql.Id, primary_key=True),
        sa.Column("level", sa.SmallInteger, nullable=False),
        sa.Column("payment_id", sql.Id, nullable=False),
        sa.Column("expire_time", sql.Instant, nullable=False),
        sa.Index("offline_risks_by_expiry", "expire_time"),
    )
    op.create_table(
        "event_log",
        sa.Column("log_id", sql.serial(), primary_key=True, autoincrement=True),
        sa.Column("events", sql.blob(), nullable=False),
        sa.Column("relayed", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Index("event_log_relayed", "relayed", "log_id"),
    )
