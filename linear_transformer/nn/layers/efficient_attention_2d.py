"""Efficient attention over the pixels of an image, and the non-local module that it replaces."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import Linear, flops_of_weights, merge_heads, split_heads
from linear_transformer.ops import checks
from linear_transformer.ops.efficient import (
    check_normalization,
    efficient_attention,
    non_local_attention,
    scaled_efficient_attention,
)
from linear_transformer.types import Keys, Outputs, Queries, Values

Image = Float[Array, "B Y X D"]  # rows Y, columns X


class EfficientAttention2D(nnx.Module):
    """Residual attention of every pixel to all pixels, in memory linear in the number of pixels.

    The module is the released one of Shen et al. 2021 (arXiv:1812.01243): 1 x 1 projections to
    queries, keys and values, attention per head, a 1 x 1 reprojection to the channels of the input,
    and a residual connection.  The paper has one head, the released code has several.

    Attributes:
      channels: channels D of the input.
      key_channels, value_channels: widths of all heads together; None is `channels` // 2 for keys
        and `channels` for values.
      normalization: "softmax" or "scaling".
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        value_channels: int | None = None,
        heads: int = 1,
        normalization: str = "softmax",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_normalization(normalization)
        keys = channels // 2 if key_channels is None else key_channels
        values = channels if value_channels is None else value_channels
        checks.counts(heads=heads, key_channels=keys, value_channels=values)
        for name, size in (("key_channels", keys), ("value_channels", values)):
            if size % heads:
                raise ValueError(f"{name} is {size}, not a multiple of heads ({heads})")
        self.heads = heads
        self.normalization = normalization
        self.query = Linear(channels, keys, axes=("embed", "heads"), dtype=dtype, rngs=rngs)
        self.key = Linear(channels, keys, axes=("embed", "heads"), dtype=dtype, rngs=rngs)
        self.value = Linear(channels, values, axes=("embed", "heads"), dtype=dtype, rngs=rngs)
        self.reprojection = Linear(
            values, channels, axes=("heads", "embed"), dtype=dtype, rngs=rngs
        )

    def __call__(self, x_BYXD: Image) -> Image:
        x_BTD = x_BYXD.reshape(x_BYXD.shape[0], -1, x_BYXD.shape[-1])
        layers = (self.query, self.key, self.value)
        q_BTHK, k_BTHK, v_BTHV = (split_heads(layer(x_BTD), self.heads) for layer in layers)
        y_BTD = self.reprojection(merge_heads(self._attend(q_BTHK, k_BTHK, v_BTHV)))
        return x_BYXD + y_BTD.reshape(x_BYXD.shape)

    def flops(self, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """Returns the FLOPs of an image of `size` (rows, columns), and the size of the output.

        A multiply-add counts as two.
        """
        pixels = math.prod(size)
        return (flops_of_weights(self) + self._flops_per_pixel(pixels)) * pixels, size

    def _flops_per_pixel(self, pixels: int) -> int:
        del pixels
        return 4 * self.query.out_features * self.value.out_features // self.heads

    def _attend(self, q_BTHK: Queries, k_BTHK: Keys, v_BTHV: Values) -> Outputs:
        if self.normalization == "scaling":
            return scaled_efficient_attention(q_BTHK, k_BTHK, v_BTHV)
        return efficient_attention(q_BTHK, k_BTHK, v_BTHV, direction="bidirectional")[0]


class NonLocal2D(EfficientAttention2D):
    """Non-local module: `EfficientAttention2D` with attention quadratic in the number of pixels.

    In Wang et al. 2018 (arXiv:1711.07971), "softmax" is the embedded Gaussian and "scaling" the dot
    product.  With "scaling" the module computes the same function as `EfficientAttention2D`.
    """

    def _flops_per_pixel(self, pixels: int) -> int:
        return 2 * (self.query.out_features + self.value.out_features) * pixels

    def _attend(self, q_BTHK: Queries, k_BTHK: Keys, v_BTHV: Values) -> Outputs:
        return non_local_attention(q_BTHK, k_BTHK, v_BTHV, normalization=self.normalization)
