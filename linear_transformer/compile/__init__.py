"""Ahead-of-time compilation, and the costs of a compiled program."""
