"""FAVOR+, the attention of Performers (Choromanski et al. 2021, arXiv:2009.14794)."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.mixers.kernel_attention import KernelAttention, KernelOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.ops import checks
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.log_space import ScaledState
from linear_transformer.ops.random_features import (
    draw_projections,
    log_feature_attention,
    positive_log_features,
    relu_features,
)

KERNELS = ("softmax", "relu")


@mechanism(
    "performer",
    meaning="FAVOR+: softmax attention by positive random features",
    source="Choromanski et al. 2021, arXiv:2009.14794, lemma 1",
    options={"kernel": "softmax", "features": 64},
    bidirectional={},
)
class Performer(KernelAttention):
    """Softmax attention estimated with positive random features, or attention with ReLU features.

    The projections are not parameters but a function of `seed`: all layers share them, optimizers
    and checkpoints do not contain them, and a model restored with the same options computes the
    same function.  To redraw them, build the model with another seed; the parameters still fit.

    Attributes:
      kernel: "softmax" (positive features, an unbiased estimate) or "relu" (generalised attention).
      features: number of random projections per head.
      orthogonal: whether projections are orthogonal in blocks of the key width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kernel: str = "softmax",
        features: int = 64,
        orthogonal: bool = True,
        seed: int = 0,
        rngs: nnx.Rngs,
        **options: Unpack[KernelOptions],
    ):
        checks.choice("kernel", kernel, KERNELS)
        checks.counts(features=features)
        self.kernel = kernel
        self.features = features
        self.orthogonal = orthogonal
        self.seed = seed
        super().__init__(width, heads, rngs=rngs, **options)

    @property
    def _state_shape(self):
        return self.features, self.value_width + 1

    def flops_per_token(self, context: int) -> int:
        projections = 4 * self.heads * self.features * self.key_width
        return super().flops_per_token(context) + projections

    def _init_sums(self, batch_size: int) -> MixerState:
        sums = super()._init_sums(batch_size)
        if self.kernel == "relu":
            return sums
        return ScaledState(sums, jnp.zeros(sums.shape[:2], sums.dtype))

    def _attend(self, x, q, k, v, sums, segment_ids, positions):
        del x, positions
        w_HMK = draw_projections(
            self.heads, self.features, self.key_width, seed=self.seed, orthogonal=self.orthogonal
        )
        w_HMK = jnp.asarray(w_HMK, self._state_dtype)
        options = {"direction": self.direction, "initial_state": sums}
        options |= self._recurrence(segment_ids)
        if self.kernel == "relu":
            q, k = (relu_features(a, w_HMK).astype(v.dtype) for a in (q, k))
            return linear_attention(q, k, v, feature_map=None, **options)
        q, k = (positive_log_features(a, w_HMK) for a in (q, k))
        return log_feature_attention(q, k, v, **options)
