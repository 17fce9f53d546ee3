"""ListOps: the data set, and the trees that it is made of."""
