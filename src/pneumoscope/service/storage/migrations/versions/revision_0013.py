"""Allow an image to have the identities of several patients."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_COLUMNS = "pixel_sha256, study_key, series_instance_uid, sop_instance_uid, station_name, statement_sha256"


def upgrade() -> None:
    """Add the number to the primary key of instances. Existing instances get 0, since each is the only one of its image."""
    _replace([sa.Column("number", sa.Integer, primary_key=True, autoincrement=False)], f"{_COLUMNS}, number", "0", "")


def downgrade() -> None:
    """Keep each image's own identity, and remove those of other patients."""
    _replace([], _COLUMNS, "", "WHERE number = 0")
    op.execute(
        "DELETE FROM studies WHERE study_key NOT IN (SELECT study_key FROM instances WHERE study_key IS NOT NULL)"
    )
    op.execute(
        "DELETE FROM patients WHERE patient_key NOT IN (SELECT patient_key FROM studies WHERE patient_key IS NOT NULL)"
    )


def _replace(key: list[sa.Column[int]], columns: str, number: str, condition: str) -> None:
    """Recreate the table with another primary key, which SQLite cannot alter."""
    op.create_table(
        "new_instances",
        sa.Column("pixel_sha256", sa.String(64), primary_key=True),
        *key,
        sa.Column("study_key", sa.String(32), sa.ForeignKey("studies.study_key")),
        sa.Column("series_instance_uid", sa.Text, nullable=False),
        sa.Column("sop_instance_uid", sa.Text, nullable=False),
        sa.Column("station_name", sa.Text, nullable=False),
        sa.Column("statement_sha256", sa.String(64), nullable=False),
    )
    values = ", ".join([_COLUMNS, *([number] if number else [])])
    op.execute(f"INSERT INTO new_instances ({columns}) SELECT {values} FROM instances {condition}")  # noqa: S608
    op.drop_table("instances")
    op.rename_table("new_instances", "instances")
    for name in ("study_key", "sop_instance_uid"):
        op.create_index(f"ix_instances_{name}", "instances", [name])
