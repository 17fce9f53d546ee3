"""Divisors that are kept from 0: a normaliser as one more value column, and lengths."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops.recurrence import accumulation_dtype


def with_ones(v: Float[Array, "*rows V"]) -> Float[Array, "*rows W"]:
    """v' = [v, 1]: the last column of the output is the sum of the weights."""
    return jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)


def divide(o_BTHW: Float[Array, "B T H W"], floor: float) -> Float[Array, "B T H V"]:
    """Columns over the last one, which is clamped from below: there the output fades to 0."""
    return o_BTHW[..., :-1] / jnp.maximum(o_BTHW[..., -1:], floor)


def unit_length(x: Float[Array, "*rows K"]) -> Float[Array, "*rows K"]:
    """x / |x|, in fp32 or wider; zeros stay zeros.

    A row of zeros has no direction to follow, so its gradient is 0: the derivative 1 / |x| of what
    is next to it would be beyond all others.
    """
    x = x.astype(accumulation_dtype(x))
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = squares != 0  # NaN too
    return jnp.where(some, x, 0) * lax.rsqrt(jnp.where(some, squares, 1) + 1e-12)
