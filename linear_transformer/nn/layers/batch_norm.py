"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.parameters import vector
from linear_transformer.ops import sequence_parallel

DECAY = 0.9  # of the running moments per step; the default of PyTorch
_EPSILON = 1e-5


class BatchNorm(nnx.Module):
    """Batch norm `gain (x - mean) / std + bias`, with one mean and one std per feature.

    In training, mean and std are taken over all tokens of a device's rows, padding included.
    Otherwise they are the running ones, so that a prediction does not depend on the other rows.

    A call in training adds the moments of its tokens to `moments`.  A training step therefore sets
    them to zeros before its calls, sums them over parts of the batch and devices, and moves the
    running moments towards the sums.

    Attributes:
      moments: sums over tokens of 1, x and x^2, (3, D).
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        del rngs
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), **vector("embed"))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32), **vector("embed"))
        self.moments = nnx.BatchStat(jnp.zeros((3, width), jnp.float32), **vector(None, "embed"))

    def __call__(
        self, x: Float[Array, "*rows D"], *, training: bool = False
    ) -> Float[Array, "*rows D"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if training:
            rows = wide.reshape(-1, wide.shape[-1])
            shards = sequence_parallel.shards()
            mean = sequence_parallel.total(jnp.mean(rows, axis=0)) / shards
            variance = jnp.mean(jnp.square(rows - mean), axis=0)
            variance = sequence_parallel.total(variance) / shards
            of_batch = len(rows) * jnp.stack([jnp.ones_like(mean), mean, variance + mean**2])
            self.moments[...] += jax.lax.stop_gradient(of_batch).astype(self.moments.dtype)
        else:
            count, total, squares = self.moments[...]
            some = count > 0  # not so before the first step
            count = jnp.where(some, count, 1)
            mean = total / count
            variance = jnp.where(some, squares / count - mean**2, 1)
        y = (wide - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0) + _EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(self.dtype)
