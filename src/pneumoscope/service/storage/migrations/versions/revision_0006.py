"""Add the tables of patients, studies and instances, and the pixel hash of images."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_KEY = sa.String(32)
_SHA256 = sa.String(64)


def upgrade() -> None:
    """Create the tables. Existing images are identified by their file hash and have no patient."""
    op.create_table(
        "patients",
        sa.Column("patient_key", _KEY, primary_key=True),
        sa.Column("patient_id", sa.Text, nullable=False, index=True),
        sa.Column("issuer_of_patient_id", sa.Text, nullable=False),
        sa.Column("patient_name", sa.Text, nullable=False),
        sa.Column("patient_birth_date", sa.Text, nullable=False),
        sa.Column("patient_sex", sa.Text, nullable=False),
        sa.Column("patient_search", sa.Text, nullable=False),
    )
    op.create_table(
        "studies",
        sa.Column("study_key", _KEY, primary_key=True),
        sa.Column("patient_key", _KEY, sa.ForeignKey("patients.patient_key"), index=True),
        sa.Column("study_instance_uid", sa.Text, nullable=False, index=True),
        sa.Column("accession_number", sa.Text, nullable=False, index=True),
        sa.Column("study_date", sa.Text, nullable=False),
        sa.Column("study_description", sa.Text, nullable=False),
        sa.Column("study_search", sa.Text, nullable=False),
    )
    op.create_table(
        "instances",
        sa.Column("pixel_sha256", _SHA256, primary_key=True),
        sa.Column("study_key", _KEY, sa.ForeignKey("studies.study_key"), index=True),
        sa.Column("series_instance_uid", sa.Text, nullable=False),
        sa.Column("sop_instance_uid", sa.Text, nullable=False, index=True),
        sa.Column("station_name", sa.Text, nullable=False),
        sa.Column("statement_sha256", _SHA256, nullable=False),
    )
    op.add_column("predictions", sa.Column("pixel_sha256", _SHA256, nullable=False, server_default=""))
    op.add_column("predictions", sa.Column("last_predicted", sa.String(32), nullable=False, server_default=""))
    op.add_column("predictions", sa.Column("identity_removed", sa.String(32)))
    op.execute("UPDATE predictions SET pixel_sha256 = image_sha256, last_predicted = created")
    op.create_index("ix_predictions_pixel_sha256", "predictions", ["pixel_sha256"])


def downgrade() -> None:
    """Drop the tables, including the identities of all patients."""
    op.drop_index("ix_predictions_pixel_sha256", "predictions")
    for name in ("pixel_sha256", "last_predicted", "identity_removed"):
        op.drop_column("predictions", name)
    op.drop_table("instances")
    op.drop_table("studies")
    op.drop_table("patients")
