"""Read recipes from packages and TOML files, and override single fields."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pneumoscope.core.errors import RecipeError, UnknownNameError
from pneumoscope.runs.recipe import Recipe

__all__ = ["known_recipes", "packaged_recipes", "parse_recipe", "read_recipe"]

_ENTRY_POINTS = "pneumoscope.recipes"  # group of entry points, each naming a package of recipes

# Recipe fields by their names in other libraries.
_USUAL_NAMES = {
    "arch": "network.name",
    "architecture": "network.name",
    "backbone": "network.name",
    "model": "network.name",
    "pretrained": "network.weights",
    "img_size": "network.image_size",
    "lr": "optimizer.learning_rate",
    "eta": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "eps": "optimizer.epsilon",
    "betas": "optimizer.beta1",
    "rho": "optimizer.decay",
    "alpha": "optimizer.decay",
    "gamma": "optimizer.step_factor",
    "step_size": "optimizer.step_epochs",
    "patience": "training.early_stopping",
    "random_state": "training.seed",
    "hflip": "augmentation.flip",
}


def known_recipes() -> dict[str, str]:
    """Return all recipes as {name: TOML text}: the general ones, then those of packages with an entry point.

    If names collide, the general recipe or else the first one takes precedence.

    Raises:
        RecipeError: A package cannot be imported.
    """
    recipes = packaged_recipes()
    for entry_point in entry_points(group=_ENTRY_POINTS):
        try:
            found = packaged_recipes(entry_point.value)
        except Exception as error:  # importing a package runs arbitrary code
            distribution = entry_point.dist.name if entry_point.dist else entry_point.value
            raise RecipeError(
                f"cannot read the recipes of the distribution {distribution!r}: {error}",
                hint=f"Repair or remove it: pip uninstall {distribution}",
            ) from error
        recipes |= {name: text for name, text in found.items() if name not in recipes}
    return recipes


def packaged_recipes(package: str = "pneumoscope.recipes") -> dict[str, str]:
    """Return the recipes in a package as {name: TOML text}, sorted by name."""
    recipes = {
        item.name.removesuffix(".toml"): item for item in files(package).iterdir() if item.name.endswith(".toml")
    }
    return {name: recipes[name].read_text(encoding="utf-8") for name in sorted(recipes)}


def read_recipe(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """Return a recipe by name or from a file, with single fields overridden.

    Args:
        source: Name in `known_recipes`, or path of a TOML file.
        overrides: Assignments such as "training.epochs=3". Values are parsed as TOML, or else taken as strings. "none"
            unsets an optional field, as it does in a file.

    Raises:
        UnknownNameError: `source` is neither a known recipe nor a file.
        RecipeError: The text is not TOML, a field is unknown, or a value is invalid.
    """
    recipes = packaged_recipes()
    if source not in recipes:
        recipes = known_recipes()
    if source in recipes:
        text, name = recipes[source], f"recipe {source}"
    elif Path(source).is_file():
        try:
            text, name = Path(source).read_text(encoding="utf-8"), source
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"cannot read {source!r} as a recipe: {error}", hint="A recipe is a TOML file in UTF-8"
            ) from error
    else:
        raise UnknownNameError(
            "recipe",
            source,
            recipes,
            hint="List the recipes with: pneumoscope recipes; or give the path of a TOML file",
        )
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name} is not TOML: {error}") from error
    for override in overrides:
        _apply_override(data, override)
    return parse_recipe(data, name)


def parse_recipe(data: Mapping[str, Any], name: str) -> Recipe:
    """Return a recipe from plain data.

    Args:
        data: The tables of the recipe.
        name: Name of the recipe or its file, for messages.

    Raises:
        RecipeError: A field is unknown (the hint suggests the closest one) or has an invalid value.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "recipe"
        if first["type"] == "extra_forbidden":
            closest = _closest_field(field)
            hint = f"Did you mean {closest!r}?" if closest else f"Known: {', '.join(_field_names())}"
            raise RecipeError(f"{name}: there is no field {field!r}", hint=hint) from error
        if first["type"] == "value_error":
            raise RecipeError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from error
        value = "" if first["type"] == "missing" else f" (it is {first['input']!r})"
        raise RecipeError(f"{name}: {field}: {first['msg']}{value}") from error


def _closest_field(field: str) -> str:
    """Return the field with this name in another library, or with the most similar name; "" without a match."""
    usual = _USUAL_NAMES.get(field.rpartition(".")[2].lower(), "")
    closest = difflib.get_close_matches(field, _field_names(), n=1, cutoff=0.5)
    return usual or (closest[0] if closest else "")


def _field_names() -> list[str]:
    names = []
    for name, field in Recipe.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            names += [f"{name}.{option}" for option in table.model_fields]
        else:
            names.append(name)
    return names


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r} is not KEY=VALUE", hint="Example: --set training.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *tables, last = key.strip().split(".")
    table = data
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: {name!r} is a value, not a table")
    table[last] = parsed
