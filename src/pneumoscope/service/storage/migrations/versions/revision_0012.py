"""Count the attempts to predict received instances."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column. Waiting instances start without attempts."""
    op.add_column("received_instances", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("received_instances", "attempts")
