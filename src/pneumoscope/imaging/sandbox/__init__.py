"""Decoding in worker processes: the pool, one worker seen from its parent, and the worker itself."""
