"""Configs: their keys, their files, those that are shipped."""
