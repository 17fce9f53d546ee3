"""Pairs of texts: citing articles, passages of one work."""
