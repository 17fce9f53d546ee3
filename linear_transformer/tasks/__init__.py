"""What a config trains."""
