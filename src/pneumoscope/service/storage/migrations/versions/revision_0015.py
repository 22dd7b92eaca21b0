"""Find what is due for a destination by an index."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the index of results, and the time to that of storage commitment."""
    op.create_index("ix_outbox_due", "outbox", ["destination", "state", "due"])
    op.drop_index("ix_outbox_commitment", "outbox")
    op.create_index("ix_outbox_commitment", "outbox", ["commitment", "destination", "commitment_due"])


def downgrade() -> None:
    """Remove the index, and the time."""
    op.drop_index("ix_outbox_commitment", "outbox")
    op.create_index("ix_outbox_commitment", "outbox", ["commitment", "destination"])
    op.drop_index("ix_outbox_due", "outbox")
