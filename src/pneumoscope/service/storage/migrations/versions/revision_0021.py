"""Count rejected requests for storage commitment; previously, only the error code recorded them."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add the column. If an object's last request was rejected, all its requests without a report count as rejected."""
    op.add_column("outbox", sa.Column("commitment_rejections", sa.Integer, nullable=False, server_default="0"))
    op.execute(
        "UPDATE outbox SET commitment_rejections = commitment_attempts"
        " WHERE commitment IN ('pending', 'requested') AND error LIKE 'status!_%' ESCAPE '!'"
    )


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("outbox", "commitment_rejections")
