"""ListOps: its data set and the trees of it."""
