"""Training: from a recipe and labelled images to a finished run with its bundle. Needs the extra [train]."""
