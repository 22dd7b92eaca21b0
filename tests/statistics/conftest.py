"""Hypothesis profile: property tests have a limited number of examples and no time limit per example."""

from hypothesis import settings

settings.register_profile("statistics", deadline=None, max_examples=60)
settings.load_profile("statistics")
