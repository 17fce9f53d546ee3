"""Normalisation layers by name."""

import jax.numpy as jnp
from flax import nnx

NORMS = {"layernorm": nnx.LayerNorm, "rmsnorm": nnx.RMSNorm}


def make_norm(name: str, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """Statistics in fp32 (flax's default), output in `dtype`."""
    return NORMS[name](width, dtype=dtype, rngs=rngs)
