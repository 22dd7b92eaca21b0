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
    from pneumoscope.reproduction.recipes import report_recipes
    from pneumoscope.runs.recipe import read_recipe, shipped

    known = shipped() | report_recipes()
    recipes = [read_recipe(name, recipes=known) for name in ([name] if name is not None else known)]
    if as_json:
        found = [recipe.model_dump(mode="json") for recipe in recipes]
        click.echo(json.dumps(found if name is None else found[0], indent=2))
        return
    if name is not None:
        click.echo(recipes[0].to_toml(), nl=False)
        return
    for recipe in recipes:
        click.echo(f"{recipe.name:22} {recipe.about}")
