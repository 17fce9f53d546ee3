"""Labelled texts, and their batches."""
