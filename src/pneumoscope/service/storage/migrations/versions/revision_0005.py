"""Add the table of unreadable files."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table. Earlier unreadable files were not recorded."""
    op.create_table(
        "unreadable_files",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("image_bytes", sa.Integer, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("failure_code", sa.String(64), nullable=False),
        sa.Column("failure_message", sa.Text, nullable=False),
        sa.Column("failure_hint", sa.Text, nullable=False),
    )
    op.create_index("ix_unreadable_files_created", "unreadable_files", ["created"])


def downgrade() -> None:
    """Drop the table. The audit log keeps the events."""
    op.drop_index("ix_unreadable_files_created", "unreadable_files")
    op.drop_table("unreadable_files")
