"""BigBird: a window of blocks, random blocks and a global block (Zaheer et al. 2020)."""

from typing import Unpack

import numpy as np
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.sparse_softmax import (
    Blocks,
    block_sparse_attention,
    neighbours,
    with_global_queries,
)


@mechanism(
    "bigbird",
    meaning="softmax attention to neighbouring, random and global blocks of tokens",
    source="Zaheer et al. 2020, arXiv:2007.14062, section 2",
    options={"block_size": 64, "random_blocks": 3},
    causal=False,
    bidirectional={},
)
class BigBird(ProjectedMixer):
    """BigBird-ITC: a block of queries sees its neighbours, random blocks and the first block.

    The tokens of the first block are global: they see all tokens.  The released code has a second
    global block at the end of the row, which would be padding in a batch of unequal lengths.

    Attributes:
      direction: "bidirectional"; the default is an error, so that a config states the direction.
      block_size: tokens of a block.
      window_blocks: blocks of the window, odd: the own block and its neighbours.
      random_blocks: random blocks of each block and head; constant, the same in all layers.
      seed: seed of the random blocks.
    """

    directions = ("bidirectional",)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        block_size: int = 64,
        window_blocks: int = 3,
        random_blocks: int = 3,
        seed: int = 0,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        checks.counts(block_size=block_size, window_blocks=window_blocks)
        if window_blocks % 2 == 0:
            raise ValueError(f"window_blocks is {window_blocks}; it must be odd")
        self.block_size = block_size
        self.window_blocks = window_blocks
        self.random_blocks = random_blocks
        self.seed = seed
        self._make_projections(rngs)
        self.output = self._output_layer(rngs)

    def _blocks(self, count: int) -> Blocks:
        """Lists the blocks that each head and block of queries sees, besides the first block."""
        near = np.broadcast_to(
            neighbours(count, self.window_blocks // 2), (self.heads, count, self.window_blocks)
        )
        drawn = np.random.default_rng(self.seed).random((self.heads, count, count))
        np.put_along_axis(drawn, np.maximum(near, 0), 2, axis=-1)  # the near blocks come last
        drawn[..., 0] = 2  # so does the global block
        order = np.argsort(drawn, axis=-1)[..., : self.random_blocks]
        random = np.where(np.take_along_axis(drawn, order, axis=-1) < 2, order, -1)
        return np.concatenate([near, random], axis=-1)

    def _forward(self, x_BTD, state, segment_ids, positions):
        del state, positions
        size, time = self.block_size, x_BTD.shape[1] * sequence_parallel.shards()
        q_BTHK, k_BTHK, v_BTHK = self._by_head(x_BTD, self.query, self.key, self.value)
        o_BTHK = block_sparse_attention(
            q_BTHK,
            k_BTHK,
            v_BTHK,
            self._blocks(-(-time // size)),
            block_size=size,
            num_global=size,
            segment_ids_BT=segment_ids,
        )
        o_BTHK = with_global_queries(
            o_BTHK, q_BTHK, k_BTHK, v_BTHK, num_global=size, segment_ids_BT=segment_ids
        )
        return self.output(merge_heads(o_BTHK)), None

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for all its blocks; see `Mixer.flops_per_token`."""
        blocks = self.window_blocks + self.random_blocks + 1
        seen = min(blocks * self.block_size, context) + min(self.block_size, context)
        return 4 * self.heads * self.key_width * seen
