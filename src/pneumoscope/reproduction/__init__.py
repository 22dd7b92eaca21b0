"""The report's experiment: its six recipes, its published table with an erratum, and a function that repeats it."""
