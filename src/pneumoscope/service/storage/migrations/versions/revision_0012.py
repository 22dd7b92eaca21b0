"""Count the attempts to predict a received instance."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column; instances that wait were not attempted."""
    op.add_column("received_instances", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("received_instances", "attempts")
