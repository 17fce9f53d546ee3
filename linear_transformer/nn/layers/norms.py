"""Normalisation layers by name."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.batch_norm import BatchNorm
from linear_transformer.nn.parameters import vector


def _over_rms(x: Float[Array, "*rows D"], epsilon: float) -> Float[Array, "*rows D"]:
    """Returns `x / (rms(x) + epsilon)` in fp32 or wider; rows of zeros get gradient 0.

    Attention returns such rows if no ReLU score is positive or the query is zero.  The square root
    has no gradient there, and the gradient of x would be 1 / epsilon, 10^8 times any other.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    some = mean_square != 0  # also True for NaN
    rms = jnp.sqrt(jnp.where(some, mean_square, 1))
    return jnp.where(some, x, 0) / (rms + epsilon)


class SimpleRMSNorm(nnx.Module):
    """RMS norm `x / (||x||_2 / sqrt(D) + 1e-8)` without a gain (Qin et al. 2022, as released).

    The published epsilon is negligible: the output does not depend on the length of x.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        del width, rngs
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        return _over_rms(x, 1e-8).astype(self.dtype)


class ScaleNorm(nnx.Module):
    """RMS norm `g x / (||x||_2 / sqrt(D) + 1e-6)`, one gain g (Nguyen & Salazar 2019, equation 5).

    The gain of the paper is g sqrt(D); here g starts at 1 for any width.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        del width, rngs
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((), jnp.float32), **vector())

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        return (_over_rms(x, 1e-6) * self.scale[...]).astype(self.dtype)


NORMS: dict[str, Callable[..., nnx.Module]] = {
    "layernorm": functools.partial(
        nnx.LayerNorm, scale_metadata=vector("embed"), bias_metadata=vector("embed")
    ),
    "rmsnorm": functools.partial(nnx.RMSNorm, scale_metadata=vector("embed")),
    "simplermsnorm": SimpleRMSNorm,
    "scalenorm": ScaleNorm,
}


# Norms of the residual stream.  Norms inside a mixer see one token alone, so they are in NORMS.
STREAM_NORMS = NORMS | {"batchnorm": BatchNorm}


def make_norm(name: str, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """Makes a norm of NORMS, with statistics in fp32 (the default of Flax) and output in `dtype`.

    Raises:
      ValueError: no norm has this name.
    """
    return _make(NORMS, name, width, dtype, rngs)


def make_stream_norm(name: str, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """Makes a norm of STREAM_NORMS, as `make_norm` does; `apply_norm` calls the norm."""
    return _make(STREAM_NORMS, name, width, dtype, rngs)


def _make(norms, name, width, dtype, rngs):
    if name not in norms:
        raise ValueError(f"norm is {name!r}; choose one of {', '.join(norms)}")
    return norms[name](width, dtype=dtype, rngs=rngs)


def apply_norm(
    norm: nnx.Module, x: Float[Array, "*rows D"], *, training: bool
) -> Float[Array, "*rows D"]:
    """Applies a norm; only batch norms depend on `training`."""
    return norm(x, training=training) if isinstance(norm, BatchNorm) else norm(x)
