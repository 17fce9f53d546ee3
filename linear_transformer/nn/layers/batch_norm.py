"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) in a model without mutable state.

A call of a model changes none of its parameters.  The running moments are therefore a parameter
with a custom gradient, which is the moments of the batch.  The training step moves the parameter
towards this gradient and gives the optimizer zeros instead.  The method works in scanned and
rematerialised layers and adds up over devices and accumulated parts of a batch; Flax trains the
scales of its fp8 layers in the same way.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.parameters import vector
from linear_transformer.ops import sequence_parallel

MOMENTS = "moments"
_DECAY = 0.9  # of the running moments per step; the default of PyTorch
_EPSILON = 1e-5

Moments = Float[Array, "3 D"]  # sums over tokens of 1, x and x^2


@jax.custom_vjp
def _record(x: Array, moments: Moments, of_batch: Moments) -> Array:
    """Returns `x`; the gradient of `moments` is `of_batch`."""
    del moments, of_batch
    return x


def _record_forward(x, moments, of_batch):
    del moments
    return x, of_batch


def _record_backward(of_batch, gradient):
    return gradient, of_batch, jnp.zeros_like(of_batch)


_record.defvjp(_record_forward, _record_backward)


class BatchNorm(nnx.Module):
    """Batch norm `gain (x - mean) / std + bias`, with one mean and one std per feature.

    In training, mean and std are taken over all tokens of a device's rows, padding included.
    Otherwise they are the running ones, so that a prediction does not depend on the other rows.
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
    """Returns the gradients with zeros in place of the moments."""
    return jax.tree_util.tree_map_with_path(
        lambda path, g: jnp.zeros_like(g) if _is_moments(path) else g, gradients
    )


def update_moments(parameters: Any, of_batch: Any) -> Any:
    """Returns the parameters with running moments moved towards the "gradients" `of_batch`."""

    def update(path, parameter, new):
        if not _is_moments(path):
            return parameter
        return _DECAY * parameter + (1 - _DECAY) * new

    return jax.tree_util.tree_map_with_path(update, parameters, of_batch)


def _is_moments(path: tuple[Any, ...]) -> bool:
    return path[-1].key == MOMENTS
