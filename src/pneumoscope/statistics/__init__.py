"""Metrics, intervals, tests and calibration of NumPy arrays. Each formula names its source."""
