"""Evaluate bundles on labeled images and compare runs. All scores come from `inference`, as in production."""
