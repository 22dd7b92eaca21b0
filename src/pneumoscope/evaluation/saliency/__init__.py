"""Measurements of heatmaps."""
