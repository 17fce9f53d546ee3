"""Pathfinder: the data set, and the images that it is made of."""
