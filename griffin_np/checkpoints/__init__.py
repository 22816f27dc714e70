"""Checkpoint formats: each file reads or writes one of them as the one parameter tree."""
