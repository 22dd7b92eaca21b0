"""Figures, tables and self-contained HTML pages of results. The same input gives the same bytes."""
