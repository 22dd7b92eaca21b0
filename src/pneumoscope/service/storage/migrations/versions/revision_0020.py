"""Store the population of each model."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Create the table. The populations of earlier models are unknown."""
    op.create_table(
        "model_populations",
        sa.Column("model_sha256", sa.String(64), primary_key=True),
        sa.Column("population", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("model_populations")
