"""Add the site profile to predictions."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column. Existing predictions have no site profile."""
    op.add_column("predictions", sa.Column("model_site", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Raise NotImplementedError, because the audit log would no longer match the predictions."""
    raise NotImplementedError("the audit log contains hashes of the site profiles; restore a backup of the database")
