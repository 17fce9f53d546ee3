"""The process: distributed start, accelerators, environment record, caches."""
