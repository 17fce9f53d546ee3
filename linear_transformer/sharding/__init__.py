"""Sharding of parameters and batches over devices."""
