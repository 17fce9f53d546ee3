"""Benchmarks of speed and memory, with peers if they are installed; README.md has the results."""
