"""Metrics, intervals, tests and calibration: NumPy arrays in, floats and intervals out. Each formula names its source."""
