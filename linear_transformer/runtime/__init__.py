"""The process: start of several, accelerators, environment, caches."""
