"""Create the tables for received DICOM instances and for the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the tables. Earlier versions predicted each instance before acknowledging it, and delivered no results."""
    op.create_table(
        "received_instances",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("image_bytes", sa.Integer, nullable=False),
        sa.Column("sender", sa.String(64), nullable=False),
        sa.Column("reply_to", sa.String(64), nullable=False),
        sa.Column("study_instance_uid", sa.Text, nullable=False, index=True),
        sa.Column("sop_instance_uid", sa.Text, nullable=False, index=True),
        sa.Column("header", sa.Text, nullable=False),
        sa.Column("received", sa.String(32), nullable=False),
        sa.Column("due", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("processed", sa.String(32)),
        sa.Column("prediction_id", sa.String(32), nullable=False, index=True),
        sa.Column("failure_code", sa.String(64), nullable=False),
        sa.Column("settings", sa.String(64), nullable=False),
        sa.UniqueConstraint("image_sha256", "sender"),
    )
    op.create_table(
        "outbox",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("destination", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("result_uid", sa.Text, nullable=False),
        sa.Column("prediction_id", sa.String(32), nullable=False, index=True),
        sa.Column("failure_code", sa.String(64), nullable=False),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("operating_point", sa.String(64), nullable=False),
        sa.Column("sop_instance_uid", sa.Text, nullable=False, index=True),
        sa.Column("header", sa.Text, nullable=False),
        sa.Column("withdrawn_uids", sa.Text, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("due", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("error", sa.String(64), nullable=False),
        sa.Column("maybe_delivered", sa.Boolean, nullable=False),
        sa.Column("finished", sa.String(32)),
        sa.UniqueConstraint("result_uid", "destination"),
    )


def downgrade() -> None:
    """Drop the tables, including undelivered results."""
    op.drop_table("outbox")
    op.drop_table("received_instances")
