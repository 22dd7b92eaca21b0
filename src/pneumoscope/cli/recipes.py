"""`pneumoscope recipes`: list recipes, or print one as TOML."""

from __future__ import annotations

import json

import click

from pneumoscope.cli.options import json_option

__all__ = ["command"]


@click.command("recipes", short_help="List recipes, or print one as TOML.")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the recipes, or print the recipe NAME as TOML, as a template for your own.

    Example:  pneumoscope recipes alexnet-adam > my-recipe.toml
    """
    from pneumoscope.runs.recipe_files import known_recipes, read_recipe

    if name is None:
        recipes = [read_recipe(each) for each in known_recipes()]
        if as_json:
            click.echo(json.dumps([recipe.model_dump(mode="json") for recipe in recipes], indent=2))
            return
        for recipe in recipes:
            click.echo(f"{recipe.name:22} {recipe.about}")
        return
    recipe = read_recipe(name)
    if as_json:
        click.echo(json.dumps(recipe.model_dump(mode="json"), indent=2))
    else:
        click.echo(recipe.to_toml(), nl=False)
