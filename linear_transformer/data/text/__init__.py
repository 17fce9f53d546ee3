"""Corpora of text, and their tokenizers."""
