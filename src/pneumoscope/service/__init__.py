"""The service: images posted to one process, judged by the bundle that `predictor` scores with, and kept with an audit log."""
