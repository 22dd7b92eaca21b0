"""Store the study of outbox objects, which remains known without the header, and the reason for unreadable images."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the columns and an index. The study is copied from the header; existing reports have no reason."""
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
    """Drop the columns and the index. Only the header of an object then contains its study."""
    op.execute("UPDATE outbox SET study_instance_uid = '' WHERE kind <> 'webhook'")
    op.drop_column("outbox", "failure_parameters")
    op.drop_column("outbox", "failure_reason")
    op.drop_index("ix_unreadable_files_image_sha256", "unreadable_files")
