"""Measurements on models in training."""
