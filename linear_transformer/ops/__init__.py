"""Mathematical operations: pure functions on arrays."""
