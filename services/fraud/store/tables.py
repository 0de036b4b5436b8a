"""The fraud service's tables."""

from __future__ import annotations

import sqlalchemy as sa

from services import event_log as log
from services import sql

metadata = sa.MetaData()

sites = sa.Table(
    "sites",
    metadata,
    sa.Column("vendor_id", sql.Id, primary_key=True),
    sa.Column("site_id", sql.Id, primary_key=True),
    # The vendor's, when this was read. All rows of a vendor carry the same one.
    sa.Column("version", sa.BigInteger, nullable=False),
    # Where it stands in the vendor's list, from 0.
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("latitude", sa.Double, nullable=False),
    sa.Column("longitude", sa.Double, nullable=False),
    sa.Column("open", sa.Boolean, nullable=False),
)

# Who has no row is on the lowest tier.
tiers = sa.Table(
    "tiers",
    metadata,
    sa.Column("payer_id", sql.Id, primary_key=True),
    # The account's, when this was read.
    sa.Column("version", sa.BigInteger, nullable=False),
    # `domain.tiers.Tier`.
    sa.Column("tier", sa.String(16), nullable=False),
)

stream_cursors = sa.Table(
    "stream_cursors",
    metadata,
    sa.Column("source", sa.String(16), primary_key=True),
    # Everything up to here is in `sites` and `tiers`.
    sa.Column("position", sa.String(41), nullable=False),
)

# Every version of every rule; the highest is the rule as it is.
rules = sa.Table(
    "rules",
    metadata,
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

# One row: counts changes of rules, entries and suppressions. Who changes them locks it.
rule_revision = sa.Table(
    "rule_revision",
    metadata,
    sa.Column("revision_id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

entries = sa.Table(
    "entries",
    metadata,
    # `domain.rules.List`.
    sa.Column("list", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("entity", sa.String(80), primary_key=True),
    sa.Column("expire_time", sql.Instant, nullable=False),
    sa.Column("reason", sa.String(200), nullable=False),
    sa.Column("author", sa.String(80), nullable=False),
)

suppressions = sa.Table(
    "suppressions",
    metadata,
    sa.Column("rule", sa.String(40), primary_key=True),
    sa.Column("entity", sa.String(80), primary_key=True),
    sa.Column("expire_time", sql.Instant, nullable=False),
    sa.Column("reason", sa.String(200), nullable=False),
    sa.Column("author", sa.String(80), nullable=False),
)

assessments = sa.Table(
    "assessments",
    metadata,
    sa.Column("payment_id", sql.Id, primary_key=True),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.Column("decision", sa.SmallInteger, nullable=False),
    # 0 to 99; -1 without a model.
    sa.Column("model_score", sa.SmallInteger, nullable=False),
    # It had a reason, live or in shadow.
    sa.Column("signalled", sa.SmallInteger, nullable=False),
    # A serialized `GetAssessmentResponse` without features and label.
    sa.Column("record", sql.blob(), nullable=False),
    # What it was judged on: see store.assessments.
    sa.Column("features", sql.blob(), nullable=False),
    # 0: nothing known; 1: honest; 2: fraud.
    sa.Column("label", sa.SmallInteger, nullable=False),
    # A serialized `Label`; NULL while nothing is known.
    sa.Column("label_record", sql.blob()),
    sa.Index("assessments_by_time", "create_time"),
    sa.Index("assessments_by_label", "label", "create_time"),
)

# The lists of features that assessments were made on, by version.
feature_lists = sa.Table(
    "feature_lists",
    metadata,
    sa.Column("version", sa.String(16), primary_key=True),
    # `domain.feature_lists.to_text`, in UTF-8.
    sa.Column("features", sql.blob(), nullable=False),
)

# Labels that counters and profiles have not taken up yet.
label_tasks = sa.Table(
    "label_tasks",
    metadata,
    sa.Column("payment_id", sql.Id, primary_key=True),
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("alert_id", sql.Id, primary_key=True),
    sa.Column("create_time", sql.Instant, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("decision", sa.SmallInteger, nullable=False),
    sa.Column("score", sa.SmallInteger, nullable=False),
    sa.Column("payer_id", sql.Id),
    sa.Column("vendor_id", sql.Id),
    # Each with a comma before and behind: ",MODEL,VELOCITY_1H,".
    sa.Column("reasons", sa.String(500), nullable=False),
    # A serialized `Alert`.
    sa.Column("record", sql.blob(), nullable=False),
    sa.Index("alerts_by_time", "create_time"),
)

# How far payers may be trusted offline; who has no row, as anybody.
offline_risks = sa.Table(
    "offline_risks",
    metadata,
    sa.Column("payer_id", sql.Id, primary_key=True),
    # `event.v1.OfflineRiskChanged.Level`.
    sa.Column("level", sa.SmallInteger, nullable=False),
    # The payment it is for.
    sa.Column("payment_id", sql.Id, nullable=False),
    sa.Column("expire_time", sql.Instant, nullable=False),
    sa.Index("offline_risks_by_expiry", "expire_time"),
)

event_log = log.table(metadata)
