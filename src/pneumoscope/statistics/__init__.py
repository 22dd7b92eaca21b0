"""Numbers about predictions: numpy arrays in, floats and intervals out. Each formula names its source."""
