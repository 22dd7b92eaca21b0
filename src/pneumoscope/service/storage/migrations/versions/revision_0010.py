"""Add events of finished studies to the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the columns, which are empty for DICOM objects."""
    op.add_column("outbox", sa.Column("study_instance_uid", sa.Text, nullable=False, server_default=""))
    op.add_column("outbox", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.add_column("outbox", sa.Column("unreadable", sa.Text, nullable=False, server_default="{}"))
    op.create_index("ix_outbox_study_instance_uid", "outbox", ["study_instance_uid"])
    op.create_index("ix_audit_log_prediction_id", "audit_log", ["prediction_id"])


def downgrade() -> None:
    """Remove the events and the columns."""
    op.drop_index("ix_audit_log_prediction_id", "audit_log")
    op.drop_index("ix_outbox_study_instance_uid", "outbox")
    op.execute("DELETE FROM outbox WHERE kind = 'webhook'")
    for name in ("study_instance_uid", "revision", "unreadable"):
        op.drop_column("outbox", name)
