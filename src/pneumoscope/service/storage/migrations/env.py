"""How Alembic runs the migrations: on the connection that `service.database` gives it."""

from alembic import context

from pneumoscope.service.storage.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
