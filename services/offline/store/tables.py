"""The offline service's tables."""

from __future__ import annotations

import sqlalchemy as sa

from services import event_log as log
from services import sql

metadata = sa.MetaData()

_CURRENCY = sa.String(3)
_WORDS = sa.String(200)
_SCOPE = sa.String(32)

# The issuer's signing key, and the pepper that codes are hashed with: `issuer_key` and `pepper`.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("sealed", sql.blob(), nullable=False),
)

keysets = sa.Table(
    "keysets",
    metadata,
    sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch_time", sql.Instant, nullable=False),
    sa.Column("sealed_key", sql.blob(), nullable=False),
    sa.Column("create_time", sql.Instant, nullable=False),
)

# Requests for codes. An issue's id is also the request id that payment knows it by.
issues = sa.Table(
    "issues",
    metadata,
    sa.Column("issue_id", sql.Id, primary_key=True),
    sa.Column("request_key", sql.binary(32), nullable=False),
    sa.Column("body_hash", sql.binary(32), nullable=False),
    sa.Column("owner_id", sql.Id, nullable=False),
    sa.Column("currency_code", _CURRENCY, nullable=False),
    # The answer with its symbols, sealed; NULL once it is shown no more.
    sa.Column("sealed", sql.blob()),
    sa.Column("show_until", sql.Instant, nullable=False),
    sa.Column("reserved", sa.SmallInteger, nullable=False),
    sa.UniqueConstraint("request_key", name="issues_request_key"),
    sa.Index("issues_show_until", "show_until"),
    sa.Index("issues_reserved", "reserved", "show_until"),
)

codes = sa.Table(
    "codes",
    metadata,
    sa.Column("code_id", sql.Id, primary_key=True),
    sa.Column("issue_id", sql.Id, nullable=False),
    sa.Column("owner_id", sql.Id, nullable=False),
    sa.Column("currency_code", _CURRENCY, nullable=False),
    sa.Column("minor_units", sa.BigInteger, nullable=False),
    sa.Column("hint", sa.String(4), nullable=False),
    sa.Column("scope", _SCOPE, nullable=False),
    # HMACs under the pepper: of the symbols, and of keyset and serial. The symbols themselves are nowhere.
    sa.Column("code_hash", sql.binary(32), nullable=False),
    sa.Column("voucher_hash", sql.binary(32), nullable=False),
    # What stands for it in the filter of issued codes and the list of denied ones.
    sa.Column("filter_key", sql.binary(8), nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    # `domain.code.Release`.
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

# Which entry spent a code: its primary key is why a code is spent at most once (design, law 5).
spends = sa.Table(
    "spends",
    metadata,
    sa.Column("code_id", sql.Id, primary_key=True),
    sa.Column("entry_id", sql.Id, nullable=False),
    sa.Column("owner_id", sql.Id, nullable=False),
    sa.Column("minor_units", sa.BigInteger, nullable=False),
    sa.Column("value_minor_units", sa.BigInteger, nullable=False),
    sa.Column("issue_time", sql.Instant, nullable=False),
    sa.CheckConstraint("minor_units <= value_minor_units", name="spends_within_value"),
    sa.UniqueConstraint("entry_id", name="spends_entry_id"),
)

rights = sa.Table(
    "rights",
    metadata,
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

vendors = sa.Table(
    "vendors",
    metadata,
    sa.Column("vendor_id", sql.Id, primary_key=True),
    sa.Column("active", sa.SmallInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    # Codes that its own terminals took twice.
    sa.Column("strikes", sa.Integer, nullable=False),
)

terminals = sa.Table(
    "terminals",
    metadata,
    sa.Column("terminal_id", sql.Id, primary_key=True),
    sa.Column("vendor_id", sql.Id, nullable=False),
    sa.Column("site_id", sql.Id, nullable=False),
    sa.Column("scope", _SCOPE, nullable=False),
    sa.Column("public_key", sql.binary(32), nullable=False),
    sa.Column("revoke_time", sql.Instant),
    sa.Column("version", sa.BigInteger, nullable=False),
    # Of the newest trust bundle it was given: the instant it was made at, in microseconds.
    sa.Column("bundle_version", sa.BigInteger, nullable=False),
    # The highest number that arrived, and its hash.
    sa.Column("head_sequence", sa.BigInteger, nullable=False),
    sa.Column("head_hash", sql.binary(32), nullable=False),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("batch_id", sql.Id, primary_key=True),
    sa.Column("request_key", sql.binary(32), nullable=False),
    sa.Column("body_hash", sql.binary(32), nullable=False),
    sa.Column("vendor_id", sql.Id, nullable=False),
    sa.Column("terminal_id", sql.Id, nullable=False),
    # 16 bytes for each of its items, those that had arrived before too.
    sa.Column("item_ids", sql.blob(), nullable=False),
    # The answer to its request, but for the batch: a serialized SubmitBatchResponse.
    sa.Column("answer", sql.blob(), nullable=False),
    # The signed entries that were new, in the order of `entries.place`: they hold symbols, so they are sealed.
    sa.Column("sealed_entries", sql.blob(), nullable=False),
    sa.Column("receive_time", sql.Instant, nullable=False),
    sa.UniqueConstraint("request_key", name="batches_request_key"),
)

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("entry_id", sql.Id, primary_key=True),
    sa.Column("vendor_id", sql.Id, nullable=False),
    sa.Column("terminal_id", sql.Id, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("content_hash", sql.binary(32), nullable=False),
    sa.Column("record_time", sql.Instant, nullable=False),
    sa.Column("receive_time", sql.Instant, nullable=False),
    sa.Column("batch_id", sql.Id, nullable=False),
    sa.Column("place", sa.Integer, nullable=False),
    # NULL for what is no sale, as are currency, amount and hashes.
    sa.Column("item_id", sql.Id),
    sa.Column("currency_code", _CURRENCY),
    sa.Column("minor_units", sa.BigInteger),
    sa.Column("proof", sa.SmallInteger, nullable=False),
    sa.Column("proof_hash", sql.binary(32)),
    sa.Column("spend_hash", sql.binary(32)),
    sa.Column("flaw", _WORDS, nullable=False),
    sa.Column("doubt", sa.SmallInteger, nullable=False),
    sa.Column("doubt_detail", _WORDS, nullable=False),
    sa.Column("facts", sql.blob(), nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    # Why payment is told to hold the money: part of what it is asked, the same every time.
    sa.Column("hold", sa.SmallInteger, nullable=False),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    sa.Column("detail", _WORDS, nullable=False),
    sa.Column("liability", sa.SmallInteger, nullable=False),
    sa.Column("decide_time", sql.Instant),
    # `domain.item.Work`, and from when on somebody may take it up.
    sa.Column("work", sa.SmallInteger, nullable=False),
    sa.Column("due_time", sql.Instant, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("review", sa.SmallInteger),
    # The trust bundle it names; 0 in rows from before this was kept.
    sa.Column("bundle_version", sa.BigInteger, nullable=False, server_default="0"),
    sa.UniqueConstraint("terminal_id", "sequence", "content_hash", name="entries_journal"),
    sa.UniqueConstraint("item_id", name="entries_item_id"),
    sa.Index("entries_by_vendor", "vendor_id", "entry_id"),
    sa.Index("entries_work", "work", "due_time"),
)

double_spends = sa.Table(
    "double_spends",
    metadata,
    sa.Column("double_spend_id", sql.Id, primary_key=True),
    sa.Column("code_id", sql.Id, nullable=False),
    sa.Column("owner_id", sql.Id, nullable=False),
    sa.Column("first_entry", sql.Id, nullable=False),
    sa.Column("second_entry", sql.Id, nullable=False),
    sa.Column("proven", sa.SmallInteger, nullable=False),
    sa.Column("find_time", sql.Instant, nullable=False),
    sa.UniqueConstraint("second_entry", name="double_spends_second_entry"),
)

event_log = log.table(metadata)
