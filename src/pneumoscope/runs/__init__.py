"""Recipes, run folders and their records. No other package knows the layout of a run folder."""
