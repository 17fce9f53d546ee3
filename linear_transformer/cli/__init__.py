"""The installed commands: `linear-transformer-train` and `linear-transformer-eval`."""
