"""Labelled images, and images as tokens."""
