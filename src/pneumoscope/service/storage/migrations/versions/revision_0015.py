"""Add an index for finding what is due for a destination."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add an index of results, and the due time to the index of storage commitments."""
    op.create_index("ix_outbox_due", "outbox", ["destination", "state", "due"])
    op.drop_index("ix_outbox_commitment", "outbox")
    op.create_index("ix_outbox_commitment", "outbox", ["commitment", "destination", "commitment_due"])


def downgrade() -> None:
    """Drop the index, and remove the due time from the other one."""
    op.drop_index("ix_outbox_commitment", "outbox")
    op.create_index("ix_outbox_commitment", "outbox", ["commitment", "destination"])
    op.drop_index("ix_outbox_due", "outbox")
