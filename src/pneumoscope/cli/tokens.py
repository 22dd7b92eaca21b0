"""`pneumoscope tokens`: add, list and revoke the tokens of the service."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumoscope.cli.options import json_option
from pneumoscope.cli.service_database import open_service_database, service_database_options

if TYPE_CHECKING:
    from pneumoscope.service.auth.users import Role

__all__ = ["command"]


@click.group("tokens", short_help="Add, list and revoke the tokens of the service.")
def command() -> None:
    """Add, list and revoke the tokens of the service. It may be running: changes take effect within two seconds.

    If its database contains a token when a service starts, it requires one from every client.
    """


@command.command("add")
@click.argument("user")
@click.option(
    "--role",
    required=True,
    type=click.Choice(["sender", "reader", "administrator"]),
    help="sender: send images and get their predictions through the API; reader: also use the web interface;"
    " administrator: also delete images and manage tokens.",
)
@service_database_options
def add_command(user: str, role: Role, data_dir: Path | None, database: str) -> None:
    """Add a token for USER and print it. Only its hash is stored, so it cannot be shown again.

    USER appears in the audit log and as the author of reviews. A user may have several tokens.

    Example:  pneumoscope tokens add dr.lin --role reader --data-dir records
    """
    from pneumoscope.service.auth.tokens import TokenRepository
    from pneumoscope.service.auth.users import COMMAND_LINE

    with open_service_database(data_dir, database, create=True) as (folder, engine):
        tokens = TokenRepository(engine)
        is_first = not tokens.list()
        token, secret = tokens.add(user, role, created_by=COMMAND_LINE)
    click.echo(secret)
    location = f" in {folder}" if folder else ""
    click.echo(f"Added token {token.id} of {user}, role {role}{location}. Keep it: it cannot be shown again", err=True)
    if is_first:
        click.echo("This is the first token. Restart a running service, which then requires tokens", err=True)


@command.command("list")
@service_database_options
@json_option
def list_command(data_dir: Path | None, database: str, as_json: bool) -> None:
    """Print the tokens without their secrets: active ones first, then revoked ones.

    Example:  pneumoscope tokens list --data-dir records
    """
    from pneumoscope.service.auth.tokens import TokenRepository

    with open_service_database(data_dir, database) as (_, engine):
        tokens = TokenRepository(engine).list()
    if as_json:
        click.echo(json.dumps({"tokens": [dataclasses.asdict(token) for token in tokens]}, indent=2))
        return
    if not tokens:
        click.echo("No tokens. Add one: pneumoscope tokens add NAME --role reader", err=True)
        return
    width = max(4, *(len(token.user) for token in tokens))
    click.echo(f"{'id':8}  {'user':{width}}  {'role':13}  {'added':10}  {'last used':10}  revoked")
    for token in tokens:
        last_used, revoked = token.last_used or "never", (token.revoked or "")[:10]
        line = f"{token.id}  {token.user:{width}}  {token.role:13}  {token.created[:10]}  {last_used:10}  {revoked}"
        click.echo(line.rstrip())


@command.command("revoke")
@click.argument("token_id", metavar="ID")
@service_database_options
def revoke_command(token_id: str, data_dir: Path | None, database: str) -> None:
    """Revoke the token with this ID, see `tokens list`. This also ends its sessions.

    Example:  pneumoscope tokens revoke 3f9a0c1d --data-dir records
    """
    from pneumoscope.service.auth.tokens import TokenRepository
    from pneumoscope.service.auth.users import COMMAND_LINE

    with open_service_database(data_dir, database) as (_, engine):
        token = TokenRepository(engine).revoke(token_id, user=COMMAND_LINE)
    click.echo(f"Revoked token {token.id} of {token.user}", err=True)
