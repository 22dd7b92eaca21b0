"""Training: turn a recipe and labeled images into a finished run with its bundle. Needs the extra [train]."""
