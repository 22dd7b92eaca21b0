"""Comparisons of evaluations: paired tests, groups of runs, and cross-validations."""
