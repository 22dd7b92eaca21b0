"""`pneumoscope recipes`."""

from __future__ import annotations

import json

import click


@click.command("recipes", short_help="List recipes, or print one as TOML.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(name: str | None, as_json: bool) -> None:
    """List the recipes, or print one as TOML to start your own from.

    Example:  pneumoscope recipes alexnet-adam > mine.toml
    """
    from pneumoscope.training.recipe import read_recipe, shipped

    if name is not None:
        click.echo(read_recipe(name).to_toml(), nl=False)
        return
    recipes = [read_recipe(name) for name in shipped()]
    if as_json:
        click.echo(json.dumps([recipe.model_dump(mode="json") for recipe in recipes], indent=2))
        return
    for recipe in recipes:
        click.echo(f"{recipe.name:22} {recipe.about}")
