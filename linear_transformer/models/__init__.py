"""Models: whole networks, from inputs to logits."""
