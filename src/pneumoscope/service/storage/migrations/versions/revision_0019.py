"""Record the sender of unreadable files."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Add the column. The senders of existing records are taken from the audit log."""
    op.add_column("unreadable_files", sa.Column("sender", sa.String(64), nullable=False, server_default=""))
    op.execute(
        'UPDATE unreadable_files SET sender = coalesce((SELECT max(audit_log."user") FROM audit_log'
        " WHERE audit_log.event = 'unreadable' AND audit_log.image_sha256 = unreadable_files.image_sha256"
        " AND audit_log.time = unreadable_files.created), '')"
    )


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("unreadable_files", "sender")
