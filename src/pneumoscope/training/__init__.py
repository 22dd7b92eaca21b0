"""From a recipe and labelled films to a finished run with its bundle. The only floor above `networks` that needs torch."""
