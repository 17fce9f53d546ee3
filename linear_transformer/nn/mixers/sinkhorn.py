"""Sinkhorn attention: each block attends to itself and to a sorted block (Tay et al. 2020)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from linear_transformer.nn.layers.linear import Linear, merge_heads
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.block_local import attend
from linear_transformer.ops.non_finite import keep
from linear_transformer.ops.recurrence import accumulation_dtype


@mechanism(
    "sinkhorn",
    meaning="softmax attention inside blocks, and to blocks that a learned network sorts",
    source="Tay et al. 2020, arXiv:2002.11296, section 3",
    options={"block_size": 64},
    length_option="length",
    limits_length=True,
    causal=False,
    bidirectional={},
)
class SinkhornAttention(ProjectedMixer):
    """Softmax attention of block i to its own keys and to the keys sum_j R_ij K_j, likewise values.

    R is a relaxed permutation of the blocks: `iterations` steps of Sinkhorn normalisation of
    exp(W_2 relu(W_1 sum of the block's tokens) / temperature), for each head.  The paper's noise
    during training is left out.  Tokens attend to the first segment of each row; all later tokens
    are padding.  Outputs at padding have no meaning.  A sequence over several devices is computed
    as a whole on each of them.

    Attributes:
      direction: "bidirectional"; the default is an error, so that a config states the direction.
      length: longest input in tokens, because W_2 has a column for each block.
      block_size: tokens of a block.
      iterations: steps of Sinkhorn normalisation, of rows and then of columns.
      temperature: divisor of the logits.
    """

    directions = ("bidirectional",)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        length: int,
        block_size: int = 64,
        iterations: int = 8,
        temperature: float = 0.75,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        checks.counts(length=length, block_size=block_size, iterations=iterations)
        checks.positive(temperature=temperature)
        self.capacity = self.length = length
        self.block_size = block_size
        self.iterations = iterations
        self.temperature = temperature
        self._make_projections(rngs)
        self.sort_hidden = self._linear(width, rngs, axes=("embed", None), per_token=False)
        self.sort = Linear(
            width,
            heads * -(-length // block_size),
            axes=(None, "heads"),
            per_token=False,
            dtype=self.dtype,
            rngs=rngs,
        )
        self.output = self._output_layer(rngs)

    def _forward(self, x_BTD, state, segment_ids, positions):
        del state, positions
        time = x_BTD.shape[1] * sequence_parallel.shards()
        if time - sequence_parallel.shards() >= self.length:  # shards have equally many tokens
            raise ValueError(f"{time} tokens are more than length ({self.length})")
        exist = jnp.ones(x_BTD.shape[:2], bool)
        if segment_ids is not None:
            exist = sequence_parallel.segment_index(segment_ids) == 0
        tokens = [keep(exist, x) for x in self._by_head(x_BTD, self.query, self.key, self.value)]
        attend_to_row = sequence_parallel.on_whole_rows
        o_BTHK = attend_to_row(self._attend, keep(exist, x_BTD), *tokens, exist)
        return self.output(merge_heads(o_BTHK)), None

    def _attend(self, x_BTD, q_BTHK, k_BTHK, v_BTHK, exist_BT):
        batch, time = x_BTD.shape[:2]
        size = self.block_size

        def cut(x_BT):
            """Returns blocks (B, G, C, ...)."""
            x = jnp.pad(x_BT, ((0, 0), (0, -time % size), *[(0, 0)] * (x_BT.ndim - 2)))
            return x.reshape(batch, -1, size, *x.shape[2:])

        exist_BGC = cut(exist_BT)
        q, k, v = (cut(x) for x in (q_BTHK, k_BTHK, v_BTHK))
        sums_BGD = jnp.sum(cut(x_BTD), axis=2)
        sort_BHGG = self._permutation(sums_BGD, jnp.any(exist_BGC, axis=2)).astype(k.dtype)

        def with_sorted(x):
            return jnp.concatenate([x, jnp.einsum("bhgj,bjchk->bgchk", sort_BHGG, x)], axis=2)

        def fold(x):
            return x.reshape(-1, *x.shape[2:])

        # A place in the sorted block is empty if it is empty in all blocks of the row.
        held = jnp.broadcast_to(jnp.any(exist_BGC, axis=1, keepdims=True), exist_BGC.shape)
        visible = fold(jnp.concatenate([exist_BGC, held], axis=2))[:, None]
        visible = jnp.broadcast_to(visible, (len(visible), size, 2 * size))
        o = attend(fold(q), fold(with_sorted(k)), fold(with_sorted(v)), visible, scores="softmax")
        return o.reshape(batch, -1, *o.shape[2:])[:, :time]

    def _permutation(
        self, sums_BGD: Float[Array, "B G D"], exist_BG: Bool[Array, "B G"]
    ) -> Float[Array, "B H G G"]:
        """Relaxed permutation R of the blocks, fp32; its rows and columns of empty blocks are 0."""
        batch, blocks, _ = sums_BGD.shape
        logits = self.sort(jax.nn.relu(self.sort_hidden(sums_BGD)))
        logits = logits.reshape(batch, blocks, self.heads, -1)[..., :blocks]
        logits = jnp.moveaxis(logits, 2, 1).astype(accumulation_dtype(logits)) / self.temperature
        pairs = (exist_BG[:, :, None] & exist_BG[:, None])[:, None]
        # The least number, not -inf: the normalisation of an empty row must not be NaN.
        logits = jnp.where(pairs, logits, jnp.finfo(logits.dtype).min / 4)
        for _ in range(self.iterations):
            for axis in (-1, -2):
                shift = jax.nn.logsumexp(logits, axis, keepdims=True)
                logits = jnp.where(pairs, logits - shift, logits)
        return jnp.where(pairs, jnp.exp(logits), 0)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for two blocks and the sorting; see `Mixer.flops_per_token`."""
        size = min(self.block_size, context)
        blocks = -(-context // self.block_size)
        network = 2 * self.width * (self.width + self.sort.out_features) // size
        return 4 * self.heads * self.key_width * (2 * size + blocks) + network
