"""The tables that a service keeps, as its code reads them; `migrations` makes them, and a test compares the two.

Times are text, ISO 8601 in UTC with microseconds, so that both databases sort and print them alike.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Integer, MetaData, String, Table, Text

__all__ = ["HEX", "METADATA", "TRAIL", "WHEN", "predictions", "trail"]

METADATA = MetaData()
HEX = String(64)  # a SHA-256
WHEN = String(32)

# One image judged by one model at one operating point. The columns are those of `Prediction.to_row`, and what a person added.
predictions = Table(
    "predictions",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("path", Text, nullable=False),
    Column("image_sha256", HEX, nullable=False, index=True),
    Column("image_bytes", Integer, nullable=False),
    Column("image_removed", WHEN),
    Column("created", WHEN, nullable=False, index=True),
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
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("format", String(16), nullable=False),
    Column("model_name", Text, nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("model_sha256", HEX, nullable=False),
    Column("agrees", Boolean),
    Column("note", Text, nullable=False),
    Column("reviewed", WHEN, index=True),
    Column("reviewer", String(64)),
)

# Who did what, when, with which model. Each row holds the hash of the one before it; triggers refuse to change or remove one.
TRAIL = "audit_log"
trail = Table(
    TRAIL,
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", WHEN, nullable=False),
    Column("who", String(64), nullable=False),
    Column("what", String(32), nullable=False),
    Column("prediction", String(32), nullable=False),
    Column("image_sha256", HEX, nullable=False),
    Column("model_sha256", HEX, nullable=False),
    Column("details", Text, nullable=False),
    Column("previous", HEX, nullable=False),
    Column("hash", HEX, nullable=False),
)
