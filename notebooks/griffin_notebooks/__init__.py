"""Notebooks that teach Griffin by running it."""
