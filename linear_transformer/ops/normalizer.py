"""The normaliser as one more value column, for kernels whose denominator must be kept from 0."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def with_ones(v_BTHV: Float[Array, "B T H V"]) -> Float[Array, "B T H W"]:
    """v' = [v, 1]: the last column of the output is the sum of the weights."""
    return jnp.concatenate([v_BTHV, jnp.ones_like(v_BTHV[..., :1])], axis=-1)


def divide(o_BTHW: Float[Array, "B T H W"], floor: float) -> Float[Array, "B T H V"]:
    """Columns over the last one, which is clamped from below: there the output fades to 0."""
    return o_BTHW[..., :-1] / jnp.maximum(o_BTHW[..., -1:], floor)
