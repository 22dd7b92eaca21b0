"""Alembic migrations of the service's database; `storage.database.open_database` applies them."""
