"""Torch modules from images to logits, one family a file, and the table that names them (`registry`, which needs no torch)."""
