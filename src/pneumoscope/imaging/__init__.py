"""Decode image files to gray levels, preprocess them for the network, and draw synthetic test images."""
