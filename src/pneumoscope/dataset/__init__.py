"""Labelled films: listing them in any layout, dividing them, auditing them, fetching the public set."""
