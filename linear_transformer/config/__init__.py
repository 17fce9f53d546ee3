"""Configs: keys, checks of their values, and the config files that come with the package."""
