"""Configs: keys and their checks, files, and the configs that come with the package."""
