"""Metrics, intervals, tests and calibration on NumPy arrays. Every formula cites its source."""
