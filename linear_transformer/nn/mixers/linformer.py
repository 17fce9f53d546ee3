"""Linformer: softmax attention to k learned combinations of the keys (Wang et al. 2020)."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.nn.parameters import vector
from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.softmax import softmax_attention
from linear_transformer.types import Keys


@mechanism(
    "linformer",
    meaning="softmax attention to learned combinations of the keys",
    source="Wang et al. 2020, arXiv:2006.04768, equation 7",
    length_option="length",
    limits_length=True,
    causal=False,
    bidirectional={},
)
class Linformer(ProjectedMixer):
    """Attention `softmax(Q (E K)^T / sqrt(d)) F V` (equation 7) for inputs of limited length.

    Tokens attend to the first segment of each row; all later tokens are padding.  A combination
    sums over tokens and cannot separate segments, so padding is set to 0 before.  Outputs at
    padding have no meaning.  A call with more than `length` tokens raises a ValueError.

    Attributes:
      direction: "bidirectional"; the default is an error, so that a config states the direction.
      length: n, the longest input in tokens; shorter inputs use the first columns of E and F.
      compressed: k, the number of combinations of keys.
      share: whether keys and values share one projection, E = F; heads share E and F in any case.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        length: int,
        compressed: int = 256,
        share: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        if self.direction == "causal":
            raise ValueError("direction is 'causal'; linformer is 'bidirectional' only")
        checks.counts(length=length, compressed=compressed)
        self.key_width = head_width(width, heads)
        self.capacity = self.length = length
        self.compressed = compressed
        self.projection = self._linear(3 * width, rngs)

        def combinations() -> nnx.Param:
            init = nnx.initializers.normal(length**-0.5)
            weights = init(rngs.params(), (compressed, length), jnp.float32)
            return nnx.Param(weights, **vector(None, None))

        self.combine_keys = combinations()
        self.combine_values = None if share else combinations()
        self.output = self._output_layer(rngs)

    def _forward(self, x_BTD, state, segment_ids, positions):
        del state, positions
        time, shards = x_BTD.shape[1], sequence_parallel.shards()
        if shards * (time - 1) >= self.length:  # shards have the same number of tokens
            raise ValueError(f"{shards * time} tokens are more than length ({self.length})")
        parts = jnp.split(self.projection(x_BTD), 3, axis=-1)
        q_BTHK, k_BSHK, v_BSHK = (split_heads(x, self.heads) for x in parts)
        if segment_ids is not None:
            kept = (sequence_parallel.segment_index(segment_ids) == 0)[..., None, None]
            k_BSHK, v_BSHK = jnp.where(kept, k_BSHK, 0), jnp.where(kept, v_BSHK, 0)
        combine_values = self.combine_keys if self.combine_values is None else self.combine_values
        combined = [
            self._combine(weights[...], x)
            for weights, x in ((self.combine_keys, k_BSHK), (combine_values, v_BSHK))
        ]
        # Every shard has all combinations; positions keep softmax_attention from gathering keys.
        places_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32) if shards > 1 else None
        o_BTHK = softmax_attention(
            q_BTHK, *combined, direction="bidirectional", query_positions_BT=places_BT
        )
        return self.output(merge_heads(o_BTHK)), None

    def _combine(self, weights_CN: Float[Array, "C N"], x_BSHK: Keys) -> Float[Array, "B C H K"]:
        """Combines the tokens of the whole row; each shard adds the part of its own tokens."""
        time = x_BSHK.shape[1]
        behind = max(sequence_parallel.shards() * time - self.length, 0)
        weights_CN = jnp.pad(weights_CN, ((0, 0), (0, behind)))  # for padding behind the row
        weights_CS = lax.dynamic_slice_in_dim(
            weights_CN, sequence_parallel.offset(time), time, axis=1
        )
        combined = jnp.einsum("cs,bshk->bchk", weights_CS.astype(x_BSHK.dtype), x_BSHK)
        return sequence_parallel.total(combined)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for E K, F V and the attention; see `Mixer.flops_per_token`."""
        del context
        return 8 * self.heads * self.key_width * self.compressed
