"""Functions that fetch, read, check and cache files."""
