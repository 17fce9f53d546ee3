"""Benchmarks of speed and memory, also of installed peers; README.md has the results."""
