"""The first tables: predictions, and the audit log that nothing can change."""

import sqlalchemy as sa
from alembic import op

revision = "first"
down_revision = None

_HEX = sa.String(64)
_WHEN = sa.String(32)


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("image_sha256", _HEX, nullable=False, index=True),
        sa.Column("image_bytes", sa.Integer, nullable=False),
        sa.Column("image_removed", _WHEN),
        sa.Column("created", _WHEN, nullable=False, index=True),
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
        sa.Column("model_sha256", _HEX, nullable=False),
        sa.Column("agrees", sa.Boolean),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("reviewed", _WHEN, index=True),
        sa.Column("reviewer", sa.String(64)),
    )
    op.create_table(
        "audit_log",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", _WHEN, nullable=False),
        sa.Column("who", sa.String(64), nullable=False),
        sa.Column("what", sa.String(32), nullable=False),
        sa.Column("prediction", sa.String(32), nullable=False),
        sa.Column("image_sha256", _HEX, nullable=False),
        sa.Column("model_sha256", _HEX, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("previous", _HEX, nullable=False),
        sa.Column("hash", _HEX, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'the audit log is only ever added to'; END $$"
        )
        op.execute(
            "CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER only_added_to_{change.lower()} BEFORE {change} ON audit_log"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END"
        )


def downgrade() -> None:
    """Not offered: an audit log is not thrown away by a command."""
    raise NotImplementedError("the first tables are not removed; delete the data folder or the database yourself")
