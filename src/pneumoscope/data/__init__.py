"""Labeled data sets: read any layout, split by patient, check, cache and download."""
