"""Compare evaluations: paired tests, groups of runs, and cross-validations."""
