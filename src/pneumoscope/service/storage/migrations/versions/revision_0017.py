"""Index results by image and prediction together, because an image may have been received in very many versions."""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Replace the index."""
    op.drop_index("ix_outbox_sop_instance_uid", "outbox")
    op.create_index("ix_outbox_image", "outbox", ["sop_instance_uid", "prediction_id"])


def downgrade() -> None:
    """Restore the index by image."""
    op.drop_index("ix_outbox_image", "outbox")
    op.create_index("ix_outbox_sop_instance_uid", "outbox", ["sop_instance_uid"])
