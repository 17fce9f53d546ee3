"""Dense layer within each head."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.nn.parameters import kernel, vector
from linear_transformer.types import PRNGKey

default_init = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))


def identities(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "H K M"]:
    """Initial kernel of a layer that returns its input."""
    del key
    return jnp.broadcast_to(jnp.eye(*shape[1:], dtype=dtype), shape)


class HeadLinear(nnx.Module):
    """Dense layer within each head, `y_h = x_h W_h + b_h`, with parameters (H, K, M) and (H, M)."""

    def __init__(
        self,
        heads: int,
        width: int,
        features: int,
        *,
        use_bias: bool,
        kernel_init: Callable[..., Array] = default_init,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dtype = jnp.dtype(dtype)
        kernel_HKM = kernel_init(rngs.params(), (heads, width, features), jnp.float32)
        self.kernel = nnx.Param(kernel_HKM, **kernel("heads", None, None))
        bias_HM = jnp.zeros((heads, features))
        self.bias = nnx.Param(bias_HM, **vector("heads", None)) if use_bias else None

    def __call__(self, x_BTHK: Float[Array, "B T H K"]) -> Float[Array, "B T H M"]:
        x, w = x_BTHK.astype(self.dtype), self.kernel[...].astype(self.dtype)
        y = jnp.einsum("bthk,hkm->bthm", x, w)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)
