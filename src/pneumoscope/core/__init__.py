"""Errors, records, message catalogues and file access: used by all other packages."""
