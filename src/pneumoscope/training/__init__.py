"""From a recipe and labelled images to a finished run with its bundle. The only floor above `networks` that needs torch."""
