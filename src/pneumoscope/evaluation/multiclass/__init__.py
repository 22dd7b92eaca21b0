"""Evaluation and comparison of models of several classes; modules have the names of those for two labels."""
