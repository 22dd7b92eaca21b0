"""Errors, result types and file access shared by every layer."""
