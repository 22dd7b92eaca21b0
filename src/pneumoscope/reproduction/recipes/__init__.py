"""The report's six recipes, registered by name through the distribution's entry point."""

from __future__ import annotations

__all__ = ["RUNS"]

# In the order of the report's table.
RUNS = ("alexnet-sgd", "alexnet-adam", "alexnet-adam-32", "vgg19-rmsprop", "vgg19-adam", "vgg19-adam-32")
