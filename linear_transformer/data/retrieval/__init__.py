"""Retrieval: pairs of citing articles, or of passages of one work."""
