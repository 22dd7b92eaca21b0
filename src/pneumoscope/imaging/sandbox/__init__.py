"""Decode images in worker processes: the pool, the parent's side of a worker, and the worker itself."""
