"""Sampling from language models with constant memory."""
