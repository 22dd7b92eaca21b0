"""Add the patient's age and the warnings to predictions."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns. Existing predictions have no age and no warnings."""
    op.add_column("predictions", sa.Column("age", sa.Float))
    op.add_column("predictions", sa.Column("age_source", sa.String(16)))
    op.add_column("predictions", sa.Column("warnings", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Raise NotImplementedError, because the audit log would no longer match the predictions."""
    raise NotImplementedError("the audit log contains hashes of the ages; restore a backup of the database")
