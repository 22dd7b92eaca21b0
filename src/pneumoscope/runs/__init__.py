"""Recipes and run folders. No other package knows how a run folder is laid out."""
