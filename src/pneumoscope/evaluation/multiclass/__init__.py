"""Evaluate and compare multiclass models; most modules are named after their binary counterparts."""
