"""Add storage commitment and totals by destination to the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the columns, which are empty for objects already delivered, and count the objects that destinations have confirmed."""
    op.add_column("outbox", sa.Column("commitment", sa.String(16), nullable=False, server_default=""))
    op.add_column("outbox", sa.Column("commitment_requested", sa.String(32)))
    op.add_column("outbox", sa.Column("commitment_due", sa.String(32)))
    op.add_column("outbox", sa.Column("commitment_attempts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("outbox", sa.Column("commitment_failures", sa.Integer, nullable=False, server_default="0"))
    op.add_column("outbox", sa.Column("transaction_uid", sa.Text, nullable=False, server_default=""))
    op.create_index("ix_outbox_commitment", "outbox", ["commitment", "destination"])
    op.create_index("ix_outbox_transaction_uid", "outbox", ["transaction_uid"])
    has_identifiers = sa.text("(sop_instance_uid <> '' OR study_instance_uid <> '')")
    op.create_index(
        "ix_outbox_identified", "outbox", ["created"], sqlite_where=has_identifiers, postgresql_where=has_identifiers
    )
    op.create_table(
        "outbox_totals",
        sa.Column("destination", sa.String(64), primary_key=True),
        sa.Column("delivered", sa.Integer, nullable=False),
        sa.Column("committed", sa.Integer, nullable=False),
    )
    op.execute(
        "INSERT INTO outbox_totals (destination, delivered, committed)"
        " SELECT destination,"
        " SUM(CASE WHEN state IN ('delivered', 'withdrawn') AND NOT maybe_delivered THEN 1 ELSE 0 END), 0"
        " FROM outbox GROUP BY destination"
    )


def downgrade() -> None:
    """Drop the columns and the totals."""
    op.drop_table("outbox_totals")
    for name in ("identified", "transaction_uid", "commitment"):
        op.drop_index(f"ix_outbox_{name}", "outbox")
    names = (
        "commitment", "commitment_requested", "commitment_due", "commitment_attempts", "commitment_failures",
        "transaction_uid",
    )  # fmt: skip
    for name in names:
        op.drop_column("outbox", name)
