"""Synthetic sequences: recall, state tracking, MAD."""
