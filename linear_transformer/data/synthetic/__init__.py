"""Made sequences: recall, state tracking, MAD."""
