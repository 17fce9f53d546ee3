"""The mathematics: pure functions on arrays."""
