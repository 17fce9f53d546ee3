"""Longformer: a window around each token, and global tokens (Beltagy et al. 2020)."""

from typing import Unpack

from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.sparse_softmax import (
    block_sparse_attention,
    neighbours,
    with_global_queries,
)


@mechanism(
    "longformer",
    meaning="softmax attention in a window around each token, and to and from global tokens",
    source="Beltagy et al. 2020, arXiv:2004.05150, section 3",
    options={"window": 128},
    causal=False,
    bidirectional={},
)
class Longformer(ProjectedMixer):
    """Sliding-window attention, with global tokens that have projections of their own.

    The causal Longformer of the paper is `softmax` with a `window`.

    Attributes:
      direction: "bidirectional"; the default is an error, so that a config states the direction.
      window: w, even; a token attends to w / 2 tokens on each side, and to itself.
      num_global: first tokens of the row, which attend to all tokens and which all tokens attend
        to; 1 is the class token of a classifier.  w / 2 or fewer.
    """

    directions = ("bidirectional",)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int = 512,
        num_global: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        checks.counts(window=window, num_global=num_global)
        if window % 2 or num_global > window // 2:
            raise ValueError(f"window ({window}) must be even, and num_global at most half of it")
        self.window = window
        self.num_global = num_global
        self._make_projections(rngs)
        self.global_projections = nnx.List([self._linear(width, rngs) for _ in range(3)])
        self.output = self._output_layer(rngs)

    def _forward(self, x_BTD, state, segment_ids, positions):
        del state, positions
        reach, time = self.window // 2, x_BTD.shape[1] * sequence_parallel.shards()
        q_BTHK, k_BTHK, v_BTHK = self._by_head(x_BTD, self.query, self.key, self.value)
        o_BTHK = block_sparse_attention(
            q_BTHK,
            k_BTHK,
            v_BTHK,
            neighbours(-(-time // reach), 1),
            block_size=reach,
            reach=reach,
            num_global=self.num_global,
            segment_ids_BT=segment_ids,
        )
        o_BTHK = with_global_queries(
            o_BTHK,
            *self._by_head(x_BTD, *self.global_projections),
            num_global=self.num_global,
            segment_ids_BT=segment_ids,
        )
        return self.output(merge_heads(o_BTHK)), None

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for its window and the global tokens; see `Mixer.flops_per_token`."""
        seen = min(self.window + 1 + self.num_global, context)
        return 4 * self.heads * self.key_width * (seen + self.num_global)
