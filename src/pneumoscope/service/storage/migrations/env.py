"""Run migrations on the connection that `storage.database` passes to Alembic."""

from alembic import context

from pneumoscope.service.storage.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
