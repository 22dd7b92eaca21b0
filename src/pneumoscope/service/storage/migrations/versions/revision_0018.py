"""Record in the outbox in which study an object is, also after its header was removed, and the reason of an unreadable image."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the columns and an index. The study is that of the header; reports that were added before state no reason."""
    op.create_index("ix_unreadable_files_image_sha256", "unreadable_files", ["image_sha256"])
    op.add_column("outbox", sa.Column("failure_reason", sa.String(64), nullable=False, server_default=""))
    op.add_column("outbox", sa.Column("failure_parameters", sa.Text, nullable=False, server_default=""))
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    study = (
        "json_extract(header, '$.0020000D.Value[0]')" if is_sqlite else "CAST(header AS json) #>> '{0020000D,Value,0}'"
    )
    op.execute(
        f"UPDATE outbox SET study_instance_uid = coalesce({study}, '') WHERE header <> '' AND kind <> 'webhook'"  # noqa: S608
    )


def downgrade() -> None:
    """Remove the columns and the index; objects state their study in the header only."""
    op.execute("UPDATE outbox SET study_instance_uid = '' WHERE kind <> 'webhook'")
    op.drop_column("outbox", "failure_parameters")
    op.drop_column("outbox", "failure_reason")
    op.drop_index("ix_unreadable_files_image_sha256", "unreadable_files")
