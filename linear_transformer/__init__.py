"""Linear-attention transformers in JAX and Flax."""
