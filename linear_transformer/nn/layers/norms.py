"""Normalisation layers by name."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.batch_norm import BatchNorm
from linear_transformer.nn.parameters import vector


def _over_rms(x: Float[Array, "*rows D"], epsilon: float) -> Float[Array, "*rows D"]:
    """`x / (rms(x) + epsilon)`, in fp32 or wider; a row of zeros has no gradient.

    Attention makes such rows, of ReLU scores or of a query of zeros.  The root has no gradient
    there, and that of x would be 1 / epsilon, 10^8 times any other.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    some = mean_square != 0  # NaN too
    rms = jnp.sqrt(jnp.where(some, mean_square, 1))
    return jnp.where(some, x, 0) / (rms + epsilon)


class SimpleRMSNorm(nnx.Module):
    """`x / (||x||_2 / sqrt(D) + 1e-8)` without a gain (Qin et al. 2022, as released).

    The published epsilon is as good as none: the norm does not change with the length of x.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        del width, rngs
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        return _over_rms(x, 1e-8).astype(self.dtype)


class ScaleNorm(nnx.Module):
    """`g x / (||x||_2 / sqrt(D) + 1e-6)` with one gain g (Nguyen & Salazar 2019, equation 5).

    Their gain is g sqrt(D) here, so that g starts at 1 for any width.
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


# Norms of the residual stream; a mixer's own norm is of NORMS, of one token alone.
STREAM_NORMS = NORMS | {"batchnorm": BatchNorm}


def make_norm(name: str, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """Statistics in fp32 (flax's default), output in `dtype`.

    Raises:
      ValueError: no norm has this name.
    """
    return _make(NORMS, name, width, dtype, rngs)


def make_stream_norm(name: str, width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """As `make_norm`, of the names in STREAM_NORMS; it is called by `apply_norm`."""
    return _make(STREAM_NORMS, name, width, dtype, rngs)


def _make(norms, name, width, dtype, rngs):
    if name not in norms:
        raise ValueError(f"norm is {name!r}; choose one of {', '.join(norms)}")
    return norms[name](width, dtype=dtype, rngs=rngs)


def apply_norm(
    norm: nnx.Module, x: Float[Array, "*rows D"], *, training: bool
) -> Float[Array, "*rows D"]:
    """The norm in training or not, which only a batch norm has to know."""
    return norm(x, training=training) if isinstance(norm, BatchNorm) else norm(x)
