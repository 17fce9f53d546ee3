"""Tasks: model, data, loss and metrics of an experiment."""
