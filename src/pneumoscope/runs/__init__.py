"""Recipes, run folders and their records. No other package depends on the layout of a run folder."""
