"""Pixels: from a file to grey levels, from grey levels to a network's input, and synthetic films to try it all on."""
