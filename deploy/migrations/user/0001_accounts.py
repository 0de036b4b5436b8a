"""Accounts, credentials, sites, sessions, signing keys, requests, and the event log."""

import sqlalchemy as sa
from alembic import op

from services import sql

revision = "user_0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "users",
        sa.Column("user_id", sql.Id, primary_key=True),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("display_name", sa.String(120), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("state_reason", sa.String(500), nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.Column("update_time", sql.Instant, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("username", name="users_username"),
        sa.Index("users_state", "state", "user_id"),
        sa.Index("users_role", "role", "user_id"),
    )
    op.create_table(
        "credentials",
        sa.Column("user_id", sql.Id, primary_key=True),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("change_time", sql.Instant, nullable=False),
    )
    op.create_table(
        "attempts",
        sa.Column("username_hash", sql.binary(32), primary_key=True),
        sa.Column("wrong", sa.Integer, nullable=False),
        sa.Column("last_time", sql.Instant, nullable=False),
        sa.Column("retry_time", sql.Instant, nullable=False),
        sa.Index("attempts_last_time", "last_time"),
    )
    op.create_table(
        "sites",
        sa.Column("user_id", sql.Id, primary_key=True),
        sa.Column("site_id", sql.Id, primary_key=True),
        sa.Column("display_name", sa.String(120), nullable=False),
        sa.Column("latitude", sa.Double, nullable=False),
        sa.Column("longitude", sa.Double, nullable=False),
        sa.Column("accuracy_meters", sa.Double, nullable=False),
        sa.Column("mocked", sa.Boolean, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("session_id", sql.Id, primary_key=True),
        sa.Column("user_id", sql.Id, nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.Column("expire_time", sql.Instant, nullable=False),
        sa.Column("end_time", sql.Instant, nullable=True),
        sa.Index("sessions_user", "user_id"),
        sa.Index("sessions_expire_time", "expire_time"),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sql.binary(32), primary_key=True),
        sa.Column("session_id", sql.Id, nullable=False),
        sa.Column("spent_time", sql.Instant, nullable=True),
        sa.Index("refresh_tokens_session", "session_id"),
        sa.Index("refresh_tokens_spent_time", "spent_time"),
    )
    op.create_table(
        "revocations",
        sa.Column("user_id", sql.Id, primary_key=True),
        sa.Column("revoke_time", sql.Instant, nullable=False),
        sa.Index("revocations_revoke_time", "revoke_time"),
    )
    op.create_table(
        "signing_keys",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("public_jwk", sa.String(512), nullable=False),
        sa.Column("sealed_private_key", sql.blob(), nullable=False),
        sa.Column("create_time", sql.Instant, nullable=False),
        sa.Column("sign_time", sql.Instant, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("request_key", sql.binary(32), primary_key=True),
        sa.Column("body_hash", sql.binary(32), nullable=False),
        sa.Column("answer", sql.blob(), nullable=False),
    )
    op.create_table(
        "event_log",
        sa.Column("log_id", sql.serial(), primary_key=True, autoincrement=True),
        sa.Column("events", sql.blob(), nullable=False),
        sa.Column("relayed", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Index("event_log_relayed", "relayed", "log_id"),
    )
