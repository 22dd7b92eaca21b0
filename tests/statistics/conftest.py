"""Property tests here are bounded by their number of examples, not by the clock of a busy machine."""

from hypothesis import settings

settings.register_profile("statistics", deadline=None, max_examples=60)
settings.load_profile("statistics")
