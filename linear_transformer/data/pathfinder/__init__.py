"""Pathfinder: its data set and the images of it."""
