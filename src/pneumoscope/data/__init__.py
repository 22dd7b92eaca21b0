"""Labeled data sets: reading any layout, splitting by patient, checking, caching and downloading."""
