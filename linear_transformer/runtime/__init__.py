"""Process-level code: distributed start, accelerators, environment record, caches."""
