"""Multi-head efficient attention (Shen et al. 2021, arXiv:1812.01243) as a token mixer."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.mixers.kernel_attention import KernelAttention, KernelOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.ops.efficient import (
    check_normalization,
    efficient_attention,
    scaled_efficient_attention,
)
from linear_transformer.ops.log_space import ScaledState


@mechanism(
    "efficient",
    meaning="softmax of queries over features and of keys over tokens",
    source="Shen et al. 2021, arXiv:1812.01243, E(Q, K, V)",
    bidirectional={},
)
class EfficientAttention(KernelAttention):
    """Efficient attention: a softmax of queries over features and of keys over positions.

    Attributes:
      normalization: "softmax", or "scaling" (bidirectional only), which is exactly dot-product
        attention divided by the number of tokens.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        normalization: str = "softmax",
        rngs: nnx.Rngs,
        **options: Unpack[KernelOptions],
    ):
        check_normalization(normalization)
        super().__init__(width, heads, rngs=rngs, **options)
        if normalization == "scaling" and self.direction == "causal":
            raise ValueError("normalization is 'scaling'; it needs direction='bidirectional'")
        self.normalization = normalization

    def _init_sums(self, batch_size: int) -> MixerState:
        sums = super()._init_sums(batch_size)
        return ScaledState(sums, jnp.zeros(sums.shape[:-1], sums.dtype))

    def _attend(self, x, q, k, v, sums, segment_ids, positions):
        del x, positions
        if self.normalization == "scaling":
            if segment_ids is not None:
                raise ValueError("normalization is 'scaling'; it takes no segment_ids")
            return scaled_efficient_attention(q, k, v), None
        return efficient_attention(
            q,
            k,
            v,
            direction=self.direction,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
