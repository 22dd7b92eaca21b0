"""Tables of the service's database. The migrations create them; a test compares the two.

Times are stored as text, ISO 8601 in UTC with microseconds, so that SQLite and PostgreSQL sort and print them
identically.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "HAS_IDENTIFIERS",
    "METADATA",
    "REVISION",
    "audit_log",
    "header_predictions",
    "instances",
    "model_populations",
    "outbox",
    "outbox_totals",
    "patients",
    "predictions",
    "received_instances",
    "reviews",
    "studies",
    "tokens",
    "unreadable_files",
]

METADATA = MetaData()
REVISION = "0022"  # last migration, which results in these tables
_SHA256 = String(64)
_TIME = String(32)
_KEY = String(32)

# One row per id; see `records.compute_id`. The columns are those of `Prediction.to_row`, without failures, which are
# not stored, and the identity, which has separate tables, plus those of `StoredPrediction`. `pixel_sha256` refers to
# the instance, if any.
predictions = Table(
    "predictions",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("path", Text, nullable=False),
    Column("image_sha256", _SHA256, nullable=False, index=True),
    Column("pixel_sha256", _SHA256, nullable=False, index=True, server_default=""),
    Column("image_bytes", Integer, nullable=False),
    Column("image_removed", _TIME),
    Column("created", _TIME, nullable=False, index=True),
    Column("last_predicted", _TIME, nullable=False, server_default=""),
    Column("identity_removed", _TIME),
    Column("decision", String(16), nullable=False, index=True),
    Column("probability", Float, index=True),
    Column("interval_low", Float),
    Column("interval_high", Float),
    Column("interval_method", String(32)),
    Column("interval_n", Integer),
    Column("threshold", Float, nullable=False),
    Column("operating_point", String(64), nullable=False),
    Column("rejection_code", String(64), index=True),
    Column("rejection_parameters", Text),
    Column("uncertainty_low", Float),
    Column("uncertainty_high", Float),
    Column("uncertainty_coverage", Float),
    Column("age", Float),
    Column("age_source", String(16)),
    Column("warnings", Text, nullable=False, server_default=""),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("format", String(16), nullable=False),
    Column("image_brightness", Float),
    Column("image_contrast", Float),
    Column("image_sharpness", Float),
    Column("image_border", Float),
    Column("model_name", Text, nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("model_sha256", _SHA256, nullable=False),
    Column("model_site", Text, nullable=False, server_default=""),
    Column("model_prevalence", Float),
    Column("reviewed", _TIME, index=True),
)

# The fields of `core.identity.Identity`; see `identities`. Keys are random. The columns `..._search` contain the words
# for `identity_columns.matches_search`.
patients = Table(
    "patients",
    METADATA,
    Column("patient_key", _KEY, primary_key=True),
    Column("patient_id", Text, nullable=False, index=True),
    Column("issuer_of_patient_id", Text, nullable=False),
    Column("patient_name", Text, nullable=False),
    Column("patient_birth_date", Text, nullable=False),
    Column("patient_sex", Text, nullable=False),
    Column("patient_search", Text, nullable=False),
)
studies = Table(
    "studies",
    METADATA,
    Column("study_key", _KEY, primary_key=True),
    Column("patient_key", _KEY, ForeignKey("patients.patient_key"), index=True),
    Column("study_instance_uid", Text, nullable=False, index=True),
    Column("accession_number", Text, nullable=False, index=True),
    Column("study_date", Text, nullable=False),
    Column("study_description", Text, nullable=False),
    Column("study_search", Text, nullable=False),
)
# One row per image and patient. Number 0 is the image's own identity; others belong to other patients whose instances
# have the same pixels, until a person decides. A row without a study only keeps the hash of an upload. `entered_age`
# belongs to the row's patient.
instances = Table(
    "instances",
    METADATA,
    Column("pixel_sha256", _SHA256, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("study_key", _KEY, ForeignKey("studies.study_key"), index=True),
    Column("series_instance_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False, index=True),
    Column("station_name", Text, nullable=False),
    Column("statement_sha256", _SHA256, nullable=False),
    Column("entered_age", Float),
)
# For images received under several patients: one row per prediction and instance under whose header it was made. Each
# header has a separate current prediction, age and rejection parameters; see `current_prediction`.
header_predictions = Table(
    "header_predictions",
    METADATA,
    Column("prediction_id", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("pixel_sha256", _SHA256, nullable=False, index=True),
    Column("last_predicted", _TIME, nullable=False),
    Column("age", Float),
    Column("age_source", String(16)),
    Column("rejection_parameters", Text),
)

# One row per version of a review; withdrawn if the label is null. See `reviews`.
reviews = Table(
    "reviews",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("prediction_id", String(32), nullable=False, index=True),
    Column("pixel_sha256", _SHA256, nullable=False, index=True),
    Column("reviewer", String(64), nullable=False),
    Column("time", _TIME, nullable=False),
    Column("label", String(16)),
    Column("finding", Text, nullable=False),
    Column("note", Text, nullable=False),
)

# One row per unreadable file; see `records.UnreadableFile`. The file itself is not stored.
unreadable_files = Table(
    "unreadable_files",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("path", Text, nullable=False),
    Column("image_sha256", _SHA256, nullable=False, index=True),
    Column("image_bytes", Integer, nullable=False),
    Column("created", _TIME, nullable=False, index=True),
    Column("failure_code", String(64), nullable=False),
    Column("failure_message", Text, nullable=False),
    Column("failure_hint", Text, nullable=False),
    Column("failure_reason", String(64), nullable=False, server_default=""),
    Column("failure_parameters", Text, nullable=False, server_default=""),
    Column("sender", String(64), nullable=False, server_default=""),
)

# One row per DICOM instance and sender; see `inbox`. `header` contains the elements needed for results (PS3.18 F).
received_instances = Table(
    "received_instances",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("image_sha256", _SHA256, nullable=False),
    Column("image_bytes", Integer, nullable=False),
    Column("sender", String(64), nullable=False),
    Column("reply_to", String(64), nullable=False),
    Column("study_instance_uid", Text, nullable=False, index=True),
    Column("sop_instance_uid", Text, nullable=False, index=True),
    Column("header", Text, nullable=False),
    Column("received", _TIME, nullable=False),
    Column("due", _TIME, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("processed", _TIME),
    Column("prediction_id", String(32), nullable=False, index=True),
    Column("failure_code", String(64), nullable=False),
    Column("settings", _SHA256, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    UniqueConstraint("image_sha256", "sender"),
)

# Condition on rows of the outbox. SQLite uses the index only for queries with exactly this text.
HAS_IDENTIFIERS = text("(sop_instance_uid <> '' OR study_instance_uid <> '')")

# One row per destination and object or event to deliver; see `outbox` and `commitments`.
outbox = Table(
    "outbox",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("destination", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("result_uid", Text, nullable=False),
    Column("prediction_id", String(32), nullable=False, index=True),
    Column("failure_code", String(64), nullable=False),
    Column("model_sha256", _SHA256, nullable=False),
    Column("operating_point", String(64), nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("header", Text, nullable=False),
    Column("withdrawn_uids", Text, nullable=False),
    Column("created", _TIME, nullable=False),
    Column("due", _TIME, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("error", String(64), nullable=False),
    Column("maybe_delivered", Boolean, nullable=False),
    Column("finished", _TIME),
    Column("study_instance_uid", Text, nullable=False, index=True, server_default=""),
    Column("revision", Integer, nullable=False, server_default="0"),
    Column("unreadable", Text, nullable=False, server_default="{}"),
    Column("commitment", String(16), nullable=False, server_default=""),
    Column("commitment_requested", _TIME),
    Column("commitment_due", _TIME),
    Column("commitment_attempts", Integer, nullable=False, server_default="0"),
    Column("commitment_failures", Integer, nullable=False, server_default="0"),
    Column("commitment_rejections", Integer, nullable=False, server_default="0"),
    Column("transaction_uid", Text, nullable=False, index=True, server_default=""),
    Column("failure_reason", String(64), nullable=False, server_default=""),
    Column("failure_parameters", Text, nullable=False, server_default=""),
    UniqueConstraint("result_uid", "destination"),
    Index("ix_outbox_image", "sop_instance_uid", "prediction_id"),
    Index("ix_outbox_due", "destination", "state", "due"),
    Index("ix_outbox_commitment", "commitment", "destination", "commitment_due"),
    Index("ix_outbox_identified", "created", sqlite_where=HAS_IDENTIFIERS, postgresql_where=HAS_IDENTIFIERS),
)

# One row per destination; see `outbox`. The outbox has too many rows to count them each time.
outbox_totals = Table(
    "outbox_totals",
    METADATA,
    Column("destination", String(64), primary_key=True),
    Column("delivered", Integer, nullable=False),
    Column("committed", Integer, nullable=False),
)

# One row per model used, with its `core.population.Population` as JSON.
model_populations = Table(
    "model_populations",
    METADATA,
    Column("model_sha256", _SHA256, primary_key=True),
    Column("population", Text, nullable=False),
)

# One row per token; see `auth.tokens`. The secret is stored as SHA-256.
tokens = Table(
    "tokens",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("user", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("secret_sha256", _SHA256, nullable=False, unique=True),
    Column("created", _TIME, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("last_used", String(10)),
    Column("revoked", _TIME),
)

# One row per event. Each row contains the hash of the previous row; triggers reject changes and deletions.
audit_log = Table(
    "audit_log",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("time", _TIME, nullable=False),
    Column("user", String(64), nullable=False),
    Column("event", String(32), nullable=False),
    Column("prediction_id", String(32), nullable=False, index=True),
    Column("image_sha256", _SHA256, nullable=False),
    Column("model_sha256", _SHA256, nullable=False),
    Column("details", Text, nullable=False),
    Column("previous_hash", _SHA256, nullable=False),
    Column("hash", _SHA256, nullable=False),
)
