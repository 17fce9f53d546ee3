"""Pathfinder: the data set, and the generator of its images."""
