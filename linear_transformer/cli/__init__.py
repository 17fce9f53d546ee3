"""What pip installs as commands: `linear-transformer-train` and `linear-transformer-eval`."""
