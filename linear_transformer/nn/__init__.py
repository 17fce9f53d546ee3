"""Flax NNX modules: mixers, positions, feed-forwards, blocks and stacks."""
