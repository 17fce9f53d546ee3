"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) in a model that stores nothing.

A model is parameters, and a call changes none.  The running moments are therefore a parameter whose
gradient is, by a rule of its own, the moments of the batch; the training step moves the parameter
towards them and shows the optimizer nothing of it.  That passes through scanned and rematerialised
layers, adds up over devices and accumulated parts, and is how Flax trains the scales of its fp8.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.parameters import vector
from linear_transformer.ops import sequence_parallel

MOMENTS = "moments"
_DECAY = 0.9  # of the running moments, each step; the default of torch
_EPSILON = 1e-5

Moments = Float[Array, "3 D"]  # sums over tokens of 1, x and x^2


@jax.custom_vjp
def _record(x: Array, moments: Moments, of_batch: Moments) -> Array:
    """`x`; the gradient of `moments` is `of_batch`."""
    del moments, of_batch
    return x


def _record_forward(x, moments, of_batch):
    del moments
    return x, of_batch


def _record_backward(of_batch, gradient):
    return gradient, of_batch, jnp.zeros_like(of_batch)


_record.defvjp(_record_forward, _record_backward)


class BatchNorm(nnx.Module):
    """`gain (x - mean) / std + bias`, with mean and std of each feature over all tokens of a batch.

    In training they are the batch's, padding included, and each device has those of
    its own rows; else the running
    ones, so that a prediction does not depend on what else is in the batch.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        del rngs
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), **vector("embed"))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32), **vector("embed"))
        self.moments = nnx.Param(jnp.zeros((3, width), jnp.float32), **vector(None, "embed"))

    def __call__(
        self, x: Float[Array, "*rows D"], *, training: bool = False
    ) -> Float[Array, "*rows D"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        running = self.moments[...]
        if training:
            rows = wide.reshape(-1, wide.shape[-1])
            shards = sequence_parallel.shards()
            mean = sequence_parallel.total(jnp.mean(rows, axis=0)) / shards
            variance = jnp.mean(jnp.square(rows - mean), axis=0)
            variance = sequence_parallel.total(variance) / shards
            of_batch = len(rows) * jnp.stack([jnp.ones_like(mean), mean, variance + mean**2])
            wide = _record(wide, running, jax.lax.stop_gradient(of_batch).astype(running.dtype))
        else:
            count, total, squares = running
            count = jnp.where(count > 0, count, 1)  # before the first step
            mean = total / count
            variance = jnp.where(running[0] > 0, squares / count - mean**2, 1)
        y = (wide - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0) + _EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(self.dtype)


def without_moments(gradients: Any) -> Any:
    """The gradients with zeros for what are moments."""
    return jax.tree_util.tree_map_with_path(
        lambda path, g: jnp.zeros_like(g) if _is_moments(path) else g, gradients
    )


def update_moments(parameters: Any, of_batch: Any) -> Any:
    """The parameters with their running moments moved towards those of a batch, its "gradients"."""

    def update(path, parameter, new):
        if not _is_moments(path):
            return parameter
        return _DECAY * parameter + (1 - _DECAY) * new

    return jax.tree_util.tree_map_with_path(update, parameters, of_batch)


def _is_moments(path: tuple[Any, ...]) -> bool:
    return path[-1].key == MOMENTS
