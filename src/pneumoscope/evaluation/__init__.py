"""Judges bundles on labelled images and compares runs. Everything is scored by `predictor`: what is judged is what is
shipped."""
