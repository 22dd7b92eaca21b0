"""Evaluation of bundles on labelled images, and comparison of runs. All scores come from `inference`, as in production."""
