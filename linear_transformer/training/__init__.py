"""Training: loop, state, step, optimizers, checkpoints, metrics."""
