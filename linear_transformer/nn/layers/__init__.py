"""Layers that models and mixers are made of."""
