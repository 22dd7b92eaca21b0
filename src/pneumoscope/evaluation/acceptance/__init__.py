"""Acceptance test at a hospital, its site profile, and monitoring against it."""
