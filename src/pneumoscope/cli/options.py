"""Options that several commands share."""

from __future__ import annotations

import click

__all__ = ["database_option"]

database_option = click.option(
    "--database", default="", metavar="URL", help="PostgreSQL database instead of SQLite: postgresql://user@host/name."
)
