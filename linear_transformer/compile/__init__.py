"""Ahead-of-time compilation, and what a compiled program costs."""
