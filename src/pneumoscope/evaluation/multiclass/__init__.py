"""Evaluation and comparison of models of several classes; most modules are named after their counterparts for two labels."""
