"""The ledger: wallets, payments, transfers, requests, tasks, and the event log."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "payment_0001"
down_revision = None

_WALLET = sql.binary(19)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "wallets",
        sa.Column("wallet_id", _WALLET, primary_key=True),
        sa.Column("online", sa.BigInteger, nullable=False),
        sa.Column("offline", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("is_system", sa.SmallInteger, nullable=False),
        sa.Column("active", sa.SmallInteger, nullable=False),
        sa.Column("is_vendor", sa.SmallInteger, nullable=False),
        sa.Column("owner_version", sa.BigInteger, nullable=False),
        sa.Column("update_time", sql.Instant, nullable=False),
        sa.CheckConstraint(
            "is_system = 1 OR (online >= 0 AND offline >= 0 AND reserved >= 0 AND held >= 0)",
            name="wallets_not_below_zero",
        ),
    )
    op.create_table(
        "payments",
        sa.Column("payment_id", sql.Id, primary_key=True),
        sa.Column("payer_wallet", _WALLET, nullable=False),
        sa.Column("vendor_wallet", _WALLET, nullable=False),
        sa.Column("site_id", sql.Id),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("refunded", sa.BigInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("failure_reason", sa.SmallInteger, nullable=False),
        sa.Column("risk_decision", sa.SmallInteger, nullable=False),
        sa.Column("risk_score", sa.SmallInteger, nullable=False),
        sa.Column("risk_reasons", sa.String(500), nullable=False),
        sa.Column("latitude", sa.Double),
        sa.Column("longitude", sa.Double),
        sa.Column("accuracy_meters", sa.Double),
        sa.Column("mocked", sa.SmallInteger),
        sa.Column("reference", sa.String(140), nullable=False),
        sa.Column("request_id", sql.Id, nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.Column("update_time", sql.Instant, nullable=False),
        sa.CheckConstraint("amount > 0", name="payments_amount_above_zero"),
        sa.CheckConstraint("refunded BETWEEN 0 AND amount", name="payments_refunded_in_amount"),
        sa.Index("payments_by_payer", "payer_wallet", "payment_id"),
        sa.Index("payments_by_vendor", "vendor_wallet", "payment_id"),
    )
    op.create_table(
        "transfers",
        sa.Column("transfer_id", sql.Id, primary_key=True),
        sa.Column("debit_wallet", _WALLET, nullable=False),
        sa.Column("debit_bucket", sa.SmallInteger, nullable=False),
        sa.Column("credit_wallet", _WALLET, nullable=False),
        sa.Column("credit_bucket", sa.SmallInteger, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("purpose", sa.SmallInteger, nullable=False),
        sa.Column("payment_id", sql.Id),
        sa.Column("reference", sa.String(140), nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.CheckConstraint("amount > 0", name="transfers_amount_above_zero"),
        sa.Index("transfers_by_debit", "debit_wallet", "transfer_id"),
        sa.Index("transfers_by_credit", "credit_wallet", "transfer_id"),
        sa.Index("transfers_by_payment", "payment_id"),
    )
    op.create_table(
        "requests",
        sa.Column("request_key", sql.binary(32), primary_key=True),
        sa.Column("body_hash", sql.binary(32), nullable=False),
        sa.Column("payment_id", sql.Id),
        sa.Column("transfer_id", sql.Id),
        sa.Column("snapshot", sa.LargeBinary(64)),
    )
    op.create_table(
        "payment_tasks",
        sa.Column("task", sa.SmallInteger, primary_key=True),
        sa.Column("payment_id", sql.Id, primary_key=True),
        sa.Column("create_time", sql.Instant, nullable=False),
    )
    op.create_table(
        "event_log",
        sa.Column("log_id", sql.serial(), primary_key=True, autoincrement=True),
        sa.Column("events", sql.blob(), nullable=False),
        sa.Column("relayed", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Index("event_log_relayed", "relayed", "log_id"),
    )
