"""The report's six recipes."""

from __future__ import annotations

from pneumoscope.runs.recipe_files import packaged_recipes

__all__ = ["RUNS", "report_recipes"]

# In the order of the report's table.
RUNS = ("alexnet-sgd", "alexnet-adam", "alexnet-adam-32", "vgg19-rmsprop", "vgg19-adam", "vgg19-adam-32")


def report_recipes() -> dict[str, str]:
    """Return the report's recipes as {name: TOML text}, in the order of its table."""
    recipes = packaged_recipes(__name__)
    return {name: recipes[name] for name in RUNS}
