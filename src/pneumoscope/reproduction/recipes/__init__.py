"""The report's six recipes."""

from __future__ import annotations

from pneumoscope.runs.recipe import shipped

__all__ = ["RUNS", "report_recipes"]

# In the order of the report's table.
RUNS = ("alexnet-sgd", "alexnet-adam", "alexnet-adam-32", "vgg19-rmsprop", "vgg19-adam", "vgg19-adam-32")


def report_recipes() -> dict[str, str]:
    """Return the report's recipes as {name: TOML text}."""
    recipes = shipped(__name__)
    return {name: recipes[name] for name in RUNS}
