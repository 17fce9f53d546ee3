"""Normalisation within each head: the group norm of RetNet, xLSTM and RWKV."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.nn.parameters import vector


class HeadNorm(nnx.Module):
    """RMS norm or layer norm over the features of each head, with parameters (H, V).

    Attributes:
      center: whether the mean is subtracted and a bias added (layer norm).
      affine: whether there are gains, and biases if `center`.
    """

    def __init__(
        self,
        heads: int,
        width: int,
        *,
        center: bool = False,
        affine: bool = True,
        epsilon: float = 1e-5,
        dtype: DTypeLike,
    ):
        self.center = center
        self.epsilon = epsilon
        self.dtype = jnp.dtype(dtype)
        shape, metadata = (heads, width), vector("heads", None)
        self.scale = nnx.Param(jnp.ones(shape), **metadata) if affine else None
        self.bias = nnx.Param(jnp.zeros(shape), **metadata) if affine and center else None

    def __call__(self, x_BTHV: Float[Array, "B T H V"]) -> Float[Array, "B T H V"]:
        x = x_BTHV.astype(jnp.promote_types(x_BTHV.dtype, jnp.float32))
        if self.center:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        if self.scale is not None:
            x = x * self.scale[...]
        if self.bias is not None:
            x = x + self.bias[...]
        return x.astype(self.dtype)
