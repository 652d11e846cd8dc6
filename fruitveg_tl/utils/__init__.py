"""Utilities: files, errors, progress, the machine."""
