"""Fetching, reading, checking and caching files."""
