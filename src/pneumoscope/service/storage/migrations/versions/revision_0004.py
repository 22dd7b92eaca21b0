"""Add image statistics to predictions."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns. Existing predictions have no image statistics."""
    for name in ("image_brightness", "image_contrast", "image_sharpness", "image_border"):
        op.add_column("predictions", sa.Column(name, sa.Float))


def downgrade() -> None:
    """Raise NotImplementedError, because the audit log would no longer match the predictions."""
    raise NotImplementedError("the audit log contains hashes of the image statistics; restore a backup of the database")
