"""Pixels: from a file to grey levels, from grey levels to a network's input, and synthetic images to try it all on."""
