"""Keys, codes and their requests, rights, terminals and their journals, double spends, and the event log."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "offline_0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("sealed", sql.blob(), nullable=False),
    )
    op.create_table(
        "keysets",
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch_time", sql.Instant, nullable=False),
        sa.Column("sealed_key", sql.blob(), nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
    )
    op.create_table(
        "issues",
        sa.Column("issue_id", sql.Id, primary_key=True),
        sa.Column("request_key", sql.binary(32), nullable=False),
        sa.Column("body_hash", sql.binary(32), nullable=False),
        sa.Column("owner_id", sql.Id, nullable=False),
        sa.Column("currency_code", sa.String(3), nullable=False),
        sa.Column("sealed", sql.blob()),
        sa.Column("show_until", sql.Instant, nullable=False),
        sa.Column("reserved", sa.SmallInteger, nullable=False),
        sa.UniqueConstraint("request_key", name="issues_request_key"),
        sa.Index("issues_show_until", "show_until"),
        sa.Index("issues_reserved", "reserved", "show_until"),
    )
    op.create_table(
        "codes",
        sa.Column("code_id", sql.Id, primary_key=True),
        sa.Column("issue_id", sql.Id, nullable=False),
        sa.Column("owner_id", sql.Id, nullable=False),
        sa.Column("currency_code", sa.String(3), nullable=False),
        sa.Column("minor_units", sa.BigInteger, nullable=False),
        sa.Column("hint", sa.String(4), nullable=False),
        sa.Column("scope", sa.String(32), nullable=False),
        sa.Column("code_hash", sql.binary(32), nullable=False),
        sa.Column("voucher_hash", sql.binary(32), nullable=False),
        sa.Column("filter_key", sql.binary(8), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("release_step", sa.SmallInteger, nullable=False),
        sa.Column("issue_time", sql.Instant, nullable=False),
        sa.Column("expire_time", sql.Instant, nullable=False),
        sa.Column("release_time", sql.Instant, nullable=False),
        sa.Column("revoke_time", sql.Instant),
        sa.Column("update_time", sql.Instant, nullable=False),
        sa.CheckConstraint("minor_units > 0", name="codes_value_above_zero"),
        sa.UniqueConstraint("code_hash", name="codes_code_hash"),
        sa.UniqueConstraint("voucher_hash", name="codes_voucher_hash"),
        sa.Index("codes_by_owner", "owner_id", "code_id"),
        sa.Index("codes_by_issue", "issue_id"),
        sa.Index("codes_by_scope", "scope", "state", "expire_time"),
        sa.Index("codes_by_change", "scope", "update_time"),
        sa.Index("codes_by_release", "release_step", "release_time"),
    )
    op.create_table(
        "spends",
        sa.Column("code_id", sql.Id, primary_key=True),
        sa.Column("entry_id", sql.Id, nullable=False),
        sa.Column("owner_id", sql.Id, nullable=False),
        sa.Column("minor_units", sa.BigInteger, nullable=False),
        sa.Column("value_minor_units", sa.BigInteger, nullable=False),
        sa.Column("issue_time", sql.Instant, nullable=False),
        sa.CheckConstraint("minor_units <= value_minor_units", name="spends_within_value"),
        sa.UniqueConstraint("entry_id", name="spends_entry_id"),
    )
    op.create_table(
        "rights",
        sa.Column("owner_id", sql.Id, primary_key=True),
        sa.Column("double_spend_level", sa.SmallInteger, nullable=False),
        sa.Column("double_spend_reason", sa.String(500), nullable=False),
        sa.Column("fraud_level", sa.SmallInteger, nullable=False),
        sa.Column("fraud_reason", sa.String(500), nullable=False),
        sa.Column("fraud_time", sql.Instant),
        sa.Column("admin_level", sa.SmallInteger, nullable=False),
        sa.Column("admin_reason", sa.String(500), nullable=False),
        sa.Column("update_time", sql.Instant),
    )
    op.create_table(
        "vendors",
        sa.Column("vendor_id", sql.Id, primary_key=True),
        sa.Column("active", sa.SmallInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("strikes", sa.Integer, nullable=False),
    )
    op.create_table(
        "terminals",
        sa.Column("terminal_id", sql.Id, primary_key=True),
        sa.Column("vendor_id", sql.Id, nullable=False),
        sa.Column("site_id", sql.Id, nullable=False),
        sa.Column("scope", sa.String(32), nullable=False),
        sa.Column("public_key", sql.binary(32), nullable=False),
        sa.Column("revoke_time", sql.Instant),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("bundle_version", sa.BigInteger, nullable=False),
        sa.Column("head_sequence", sa.BigInteger, nullable=False),
        sa.Column("head_hash", sql.binary(32), nullable=False),
    )
    op.create_table(
        "batches",
        sa.Column("batch_id", sql.Id, primary_key=True),
        sa.Column("request_key", sql.binary(32), nullable=False),
        sa.Column("body_hash", sql.binary(32), nullable=False),
        sa.Column("vendor_id", sql.Id, nullable=False),
        sa.Column("terminal_id", sql.Id, nullable=False),
        sa.Column("item_ids", sql.blob(), nullable=False),
        sa.Column("answer", sql.blob(), nullable=False),
        sa.Column("sealed_entries", sql.blob(), nullable=False),
        sa.Column("receive_time", sql.Instant, nullable=False),
        sa.UniqueConstraint("request_key", name="batches_request_key"),
    )
    op.create_table(
        "entries",
        sa.Column("entry_id", sql.Id, primary_key=True),
        sa.Column("vendor_id", sql.Id, nullable=False),
        sa.Column("terminal_id", sql.Id, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("content_hash", sql.binary(32), nullable=False),
        sa.Column("record_time", sql.Instant, nullable=False),
        sa.Column("receive_time", sql.Instant, nullable=False),
        sa.Column("batch_id", sql.Id, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("item_id", sql.Id),
        sa.Column("currency_code", sa.String(3)),
        sa.Column("minor_units", sa.BigInteger),
        sa.Column("proof", sa.SmallInteger, nullable=False),
        sa.Column("proof_hash", sql.binary(32)),
        sa.Column("spend_hash", sql.binary(32)),
        sa.Column("flaw", sa.String(200), nullable=False),
        sa.Column("doubt", sa.SmallInteger, nullable=False),
        sa.Column("doubt_detail", sa.String(200), nullable=False),
        sa.Column("facts", sql.blob(), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("hold", sa.SmallInteger, nullable=False),
        sa.Column("reason", sa.SmallInteger, nullable=False),
        sa.Column("detail", sa.String(200), nullable=False),
        sa.Column("liability", sa.SmallInteger, nullable=False),
        sa.Column("decide_time", sql.Instant),
        sa.Column("work", sa.SmallInteger, nullable=False),
        sa.Column("due_time", sql.Instant, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("review", sa.SmallInteger),
        sa.UniqueConstraint("terminal_id", "sequence", "content_hash", name="entries_journal"),
        sa.UniqueConstraint("item_id", name="entries_item_id"),
        sa.Index("entries_by_vendor", "vendor_id", "entry_id"),
        sa.Index("entries_work", "work", "due_time"),
    )
    op.create_table(
        "double_spends",
        sa.Column("double_spend_id", sql.Id, primary_key=True),
        sa.Column("code_id", sql.Id, nullable=False),
        sa.Column("owner_id", sql.Id, nullable=False),
        sa.Column("first_entry", sql.Id, nullable=False),
        sa.Column("second_entry", sql.Id, nullable=False),
        sa.Column("proven", sa.SmallInteger, nullable=False),
        sa.Column("find_time", sql.Instant, nullable=False),
        sa.UniqueConstraint("second_entry", name="double_spends_second_entry"),
    )
    op.create_table(
        "event_log",
        sa.Column("log_id", sql.serial(), primary_key=True, autoincrement=True),
        sa.Column("events", sql.blob(), nullable=False),
        sa.Column("relayed", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Index("event_log_relayed", "relayed", "log_id"),
    )
