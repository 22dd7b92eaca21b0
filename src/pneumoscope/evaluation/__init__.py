"""Judges bundles on labelled films and compares runs. Everything is scored by `predictor`: what is judged is what is
shipped."""
