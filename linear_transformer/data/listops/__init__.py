"""ListOps: the data set, and the generator of its trees."""
