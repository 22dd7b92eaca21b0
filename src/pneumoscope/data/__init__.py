"""Labelled images: listing them in any layout, dividing them, auditing them, fetching the public set."""
