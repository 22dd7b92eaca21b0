"""Count the rejected requests for storage commitment, which only the code of the error stated."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add the column. The requests without a report for an object whose last request was rejected were rejected."""
    op.add_column("outbox", sa.Column("commitment_rejections", sa.Integer, nullable=False, server_default="0"))
    op.execute(
        "UPDATE outbox SET commitment_rejections = commitment_attempts"
        " WHERE commitment IN ('pending', 'requested') AND error LIKE 'status!_%' ESCAPE '!'"
    )


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("outbox", "commitment_rejections")
