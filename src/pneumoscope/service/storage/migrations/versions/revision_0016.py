"""Store the reason why a file could not be read as a code with parameters."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the columns. Existing records only have a message."""
    op.add_column("unreadable_files", sa.Column("failure_reason", sa.String(64), nullable=False, server_default=""))
    op.add_column("unreadable_files", sa.Column("failure_parameters", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Drop the columns. The records keep their messages."""
    op.drop_column("unreadable_files", "failure_parameters")
    op.drop_column("unreadable_files", "failure_reason")
