"""Record the header of each prediction for images of several patients, and the patient for whom an age was entered."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_COPIED = "last_predicted, age, age_source, rejection_parameters"


def upgrade() -> None:
    """Add the table and the column.

    For stored images of several patients, it is unknown under which header predictions were made. They are listed under
    each header, and a rejection decides. An age entered for the current prediction of any other image belongs to its
    patient.
    """
    op.add_column("instances", sa.Column("entered_age", sa.Float))
    op.create_table(
        "header_predictions",
        sa.Column("prediction_id", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("pixel_sha256", sa.String(64), nullable=False),
        sa.Column("last_predicted", sa.String(32), nullable=False),
        sa.Column("age", sa.Float),
        sa.Column("age_source", sa.String(16)),
        sa.Column("rejection_parameters", sa.Text),
    )
    op.create_index("ix_header_predictions_pixel_sha256", "header_predictions", ["pixel_sha256"])
    several = "SELECT pixel_sha256 FROM instances WHERE number > 0"
    op.execute(
        f"INSERT INTO header_predictions (prediction_id, number, pixel_sha256, {_COPIED})"  # noqa: S608
        f" SELECT id, number, predictions.pixel_sha256, {_COPIED} FROM predictions"
        f" JOIN instances ON instances.pixel_sha256 = predictions.pixel_sha256 WHERE predictions.pixel_sha256 IN ({several})"
    )
    latest = (
        "SELECT max(age) FROM predictions WHERE predictions.pixel_sha256 = instances.pixel_sha256 AND age_source = 'entered'"
        " AND last_predicted = (SELECT max(other.last_predicted) FROM predictions AS other"
        " WHERE other.pixel_sha256 = instances.pixel_sha256)"
    )
    op.execute(f"UPDATE instances SET entered_age = ({latest}) WHERE pixel_sha256 NOT IN ({several})")  # noqa: S608


def downgrade() -> None:
    """Drop the table and the column."""
    op.drop_table("header_predictions")
    op.drop_column("instances", "entered_age")
