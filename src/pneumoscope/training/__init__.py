"""Training: from a recipe and labeled images to a finished run with its bundle. Needs the extra [train]."""
