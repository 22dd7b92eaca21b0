"""Replace agreement with the decision by reviews of several readers."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the table. An agreement is not a label of the image, so agreements remain only in the audit log."""
    op.create_table(
        "reviews",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("prediction_id", sa.String(32), nullable=False, index=True),
        sa.Column("pixel_sha256", sa.String(64), nullable=False, index=True),
        sa.Column("reviewer", sa.String(64), nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
        sa.Column("label", sa.String(16)),
        sa.Column("finding", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    for name in ("agrees", "note", "reviewer"):
        op.drop_column("predictions", name)
    op.execute("UPDATE predictions SET reviewed = NULL")


def downgrade() -> None:
    """Raise NotImplementedError, because reviews cannot be converted to agreements."""
    raise NotImplementedError("reviews cannot be converted; restore a backup of the database")
