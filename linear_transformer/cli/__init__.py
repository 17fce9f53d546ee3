"""Installed commands: `linear-transformer-train` and `linear-transformer-eval`."""
