"""Evaluation of bundles on labeled images, and comparison of runs. All scores come from `inference`, as in production."""
