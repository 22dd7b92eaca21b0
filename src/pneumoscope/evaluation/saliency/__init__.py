"""Evaluation of heatmaps."""
