"""The tables. Their schema is made by deploy/migrations/user only."""

from __future__ import annotations

import sqlalchemy as sa

from services import event_log as event_logs
from services import sql

metadata = sa.MetaData()

users = sa.Table(
    "users",
    metadata,
    sa.Column("user_id", sql.Id, primary_key=True),
    sa.Column("username", sa.String(64), nullable=False),
    sa.Column("display_name", sa.String(120), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("state", sa.String(24), nullable=False),
    sa.Column("state_reason", sa.String(500), nullable=False),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.Column("update_time", sql.Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    # With defaults, because replicas of before there were tiers write rows without them while an update is under way.
    sa.Column("tier", sa.String(16), nullable=False, server_default="BASIC"),
    sa.Column("tier_reason", sa.String(500), nullable=False, server_default=""),
    sa.UniqueConstraint("username", name="users_username"),
    sa.Index("users_state", "state", "user_id"),
    sa.Index("users_role", "role", "user_id"),
    sa.Index("users_tier", "tier", "user_id"),
)

# Apart from `users`, so that no query about an account carries a hash along.
credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("user_id", sql.Id, primary_key=True),
    # Argon2id in PHC form.
    sa.Column("password_hash", sa.String(255), nullable=False),
    # When the password, not merely its hash, last changed.
    sa.Column("change_time", sql.Instant, nullable=False),
)

# Wrong passwords by SHA-256 of what was typed as a username: a name nobody has must count like one somebody has.
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("username_hash", sql.binary(32), primary_key=True),
    sa.Column("wrong", sa.Integer, nullable=False),
    sa.Column("last_time", sql.Instant, nullable=False),
    sa.Column("retry_time", sql.Instant, nullable=False),
    sa.Index("attempts_last_time", "last_time"),
)

sites = sa.Table(
    "sites",
    metadata,
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

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", sql.Id, primary_key=True),
    sa.Column("user_id", sql.Id, nullable=False),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.Column("expire_time", sql.Instant, nullable=False),
    sa.Column("end_time", sql.Instant, nullable=True),
    sa.Index("sessions_user", "user_id"),
    sa.Index("sessions_expire_time", "expire_time"),
)

refresh_tokens = sa.Table(
    "refresh_tokens",
    metadata,
    # SHA-256 of the token.
    sa.Column("token_hash", sql.binary(32), primary_key=True),
    sa.Column("session_id", sql.Id, nullable=False),
    sa.Column("spent_time", sql.Instant, nullable=True),
    sa.Index("refresh_tokens_session", "session_id"),
    sa.Index("refresh_tokens_spent_time", "spent_time"),
)

# The latest revocation of a person's tokens.
revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("user_id", sql.Id, primary_key=True),
    sa.Column("revoke_time", sql.Instant, nullable=False),
    sa.Index("revocations_revoke_time", "revoke_time"),
)

signing_keys = sa.Table(
    "signing_keys",
    metadata,
    # The next number is the newest plus one: of two replicas that add a key at once, one fails and looks again.
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("public_jwk", sa.String(512), nullable=False),
    sa.Column("sealed_private_key", sql.blob(), nullable=False),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.Column("sign_time", sql.Instant, nullable=False),
)

terminals = sa.Table(
    "terminals",
    metadata,
    sa.Column("vendor_id", sql.Id, primary_key=True),
    sa.Column("terminal_id", sql.Id, primary_key=True),
    sa.Column("display_name", sa.String(120), nullable=False),
    sa.Column("site_id", sql.Id, nullable=False),
    sa.Column("scope", sa.String(32), nullable=False),
    sa.Column("public_key", sql.binary(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.Column("revoke_time", sql.Instant, nullable=True),
    sa.Column("revoke_reason", sa.String(500), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Index("terminals_public_key", "public_key", unique=True),
    sa.Index("terminals_revoke_time", "revoke_time"),
)

# Assertions that were used, until they would be refused for their age.
assertions = sa.Table(
    "assertions",
    metadata,
    sa.Column("terminal_id", sql.Id, primary_key=True),
    sa.Column("assertion_id", sql.Id, primary_key=True),
    sa.Column("expire_time", sql.Instant, nullable=False),
    sa.Index("assertions_expire_time", "expire_time"),
)

requests = sa.Table(
    "requests",
    metadata,
    # The caller's id, 16 bytes (zeros for anybody), and the request id, 16 bytes.
    sa.Column("request_key", sql.binary(32), primary_key=True),
    sa.Column("body_hash", sql.binary(32), nullable=False),
    # The serialized response.
    sa.Column("answer", sql.blob(), nullable=False),
)

event_log = event_logs.table(metadata)
