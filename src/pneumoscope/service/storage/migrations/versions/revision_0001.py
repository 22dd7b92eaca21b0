"""Create the tables of predictions and of the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SHA256 = sa.String(64)
_TIME = sa.String(32)


def upgrade() -> None:
    """Create the tables, with triggers that make the audit log append-only."""
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("image_sha256", _SHA256, nullable=False, index=True),
        sa.Column("image_bytes", sa.Integer, nullable=False),
        sa.Column("image_removed", _TIME),
        sa.Column("created", _TIME, nullable=False, index=True),
        sa.Column("decision", sa.String(16), nullable=False, index=True),
        sa.Column("probability", sa.Float, index=True),
        sa.Column("interval_low", sa.Float),
        sa.Column("interval_high", sa.Float),
        sa.Column("interval_method", sa.String(32)),
        sa.Column("interval_n", sa.Integer),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("operating_point", sa.String(64), nullable=False),
        sa.Column("rejection_code", sa.String(64), index=True),
        sa.Column("rejection_parameters", sa.Text),
        sa.Column("uncertainty_low", sa.Float),
        sa.Column("uncertainty_high", sa.Float),
        sa.Column("uncertainty_coverage", sa.Float),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("model_version", sa.String(64), nullable=False),
        sa.Column("model_sha256", _SHA256, nullable=False),
        sa.Column("agrees", sa.Boolean),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("reviewed", _TIME, index=True),
        sa.Column("reviewer", sa.String(64)),
    )
    op.create_table(
        "audit_log",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("prediction_id", sa.String(32), nullable=False),
        sa.Column("image_sha256", _SHA256, nullable=False),
        sa.Column("model_sha256", _SHA256, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("previous_hash", _SHA256, nullable=False),
        sa.Column("hash", _SHA256, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION reject_audit_log_change() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log"
            " FOR EACH STATEMENT EXECUTE FUNCTION reject_audit_log_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_log_append_only_{change.lower()} BEFORE {change} ON audit_log"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


def downgrade() -> None:
    """Raise NotImplementedError, because no command deletes an audit log."""
    raise NotImplementedError("the first tables cannot be removed; delete the data directory or the database yourself")
