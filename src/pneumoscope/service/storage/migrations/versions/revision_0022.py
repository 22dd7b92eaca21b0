"""Store the prevalence of predictions in a separate column, not as text in the column of the site profile."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"

_PREFIX = "prevalence="
_predictions = sa.table("predictions", sa.column("model_site", sa.Text), sa.column("model_prevalence", sa.Float))


def upgrade() -> None:
    """Add the column, and move prevalences to it. Labels of site profiles differ: they end in a hash in parentheses."""
    op.add_column("predictions", sa.Column("model_prevalence", sa.Float))
    connection, site = op.get_bind(), _predictions.c.model_site
    is_prevalence = site.startswith(_PREFIX, autoescape=True) & site.notlike("%)")
    for text in connection.execute(sa.select(site).where(is_prevalence).distinct()).scalars().all():
        values = {"model_site": "", "model_prevalence": float(text.removeprefix(_PREFIX))}
        connection.execute(sa.update(_predictions).where(site == text).values(values))


def downgrade() -> None:
    """Move the prevalences back, and drop the column."""
    connection, prevalence = op.get_bind(), _predictions.c.model_prevalence
    for value in connection.execute(sa.select(prevalence).where(prevalence.is_not(None)).distinct()).scalars().all():
        text = f"{_PREFIX}{value!r}"
        connection.execute(sa.update(_predictions).where(prevalence == value).values(model_site=text))
    op.drop_column("predictions", "model_prevalence")
