"""Divisions that are safe near 0: by the normaliser of attention, and by the length of a vector."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops.recurrence import accumulation_dtype


def append_ones(v: Float[Array, "*rows V"]) -> Float[Array, "*rows W"]:
    """Appends a column of ones, v' = [v, 1]; its output column is the sum of the weights."""
    return jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)


def divide(o_BTHW: Float[Array, "B T H W"], floor: float) -> Float[Array, "B T H V"]:
    """Divides by the last column, clamped to at least `floor`; below it the output fades to 0."""
    return o_BTHW[..., :-1] / jnp.maximum(o_BTHW[..., -1:], floor)


def unit_length(x: Float[Array, "*rows K"]) -> Float[Array, "*rows K"]:
    """Scales vectors to unit length, x / |x|, in fp32 or wider; zero vectors stay zero.

    The gradient of a zero vector is 0: it has no direction, and the derivative 1 / |x| grows
    without bound as x approaches 0.
    """
    x = x.astype(accumulation_dtype(x))
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = squares != 0  # True for NaN too
    return jnp.where(some, x, 0) * lax.rsqrt(jnp.where(some, squares, 1) + 1e-12)
