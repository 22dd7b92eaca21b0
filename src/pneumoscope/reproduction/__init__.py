"""The report's experiment: its recipes, its published table with an erratum, and one call that runs and compares all."""
