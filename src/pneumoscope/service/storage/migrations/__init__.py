"""Alembic's migrations of the service's database; `database.open_database` applies them."""
