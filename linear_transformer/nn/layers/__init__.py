"""Layers of models and mixers."""
