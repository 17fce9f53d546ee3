"""Attention within blocks of the sequence, the local half of TransNormer (Qin et al. 2022)."""

from typing import Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.layers.norms import make_norm
from linear_transformer.nn.layers.positions import LRPE
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.ops import checks, segments, sequence_parallel
from linear_transformer.ops.block_local import Scores, attend, block_local_attention


@mechanism(
    "diag",
    meaning="DiagAttention: attention inside blocks of tokens that do not overlap",
    source="Qin et al. 2022, arXiv:2210.10340, section 4",
    bidirectional={},
)
class DiagAttention(ProjectedMixer):
    """DiagAttention: attention within non-overlapping blocks of tokens (section 4.2).

    Blocks are counted from the first input token of a row, even if the row is packed; see
    `ops.block_local`.  The state holds the tokens of the current, incomplete block.

    Attributes:
      block_size: tokens w of a block.
      scores: "relu" (no normaliser: TransNormer T1) or "softmax" (T2).
      output_norm: norm over the merged heads before the output projection; None for no norm.
      lrpe: whether queries and keys get `nn.layers.positions.LRPE` of the place in the block.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        block_size: int = 64,
        scores: str = "relu",
        output_norm: str | None = None,
        lrpe: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[ProjectionOptions],
    ):
        checks.counts(block_size=block_size)
        checks.choice("scores", scores, get_args(Scores))
        super().__init__(width, heads, **options)
        self.head_width = head_width(width, heads)
        self.block_size = block_size
        self.scores = scores
        self.query = self._linear(width, rngs)
        self.key = self._linear(width, rngs)
        self.value = self._linear(width, rngs)
        self.output = self._output_layer(rngs)
        self.lrpe = LRPE(self.head_width, rngs=rngs) if lrpe else None
        self.output_norm = (
            None if output_norm is None else make_norm(output_norm, width, self.dtype, rngs)
        )

    def _init_state(self, batch_size):
        shape = (batch_size, self.block_size, self.heads, self.head_width)
        return {
            "keys": jnp.zeros(shape, self.dtype),
            "values": jnp.zeros(shape, self.dtype),
            "runs": jnp.zeros((batch_size, self.block_size), jnp.int32),
            "filled": jnp.zeros((batch_size,), jnp.int32),  # tokens of the block so far
            "segment": jnp.zeros((batch_size,), jnp.int32),  # of the last token
            "run": jnp.zeros((batch_size,), jnp.int32),  # index of this segment
        }

    def _forward(self, x_BTD, state, segment_ids, positions):
        del positions  # only the place within the block matters
        q_BTHK, k_BTHK, v_BTHV = self._by_head(x_BTD, self.query, self.key, self.value)
        time = x_BTD.shape[1]
        first = sequence_parallel.offset(time)
        places_BT = jnp.broadcast_to(first + jnp.arange(time), x_BTD.shape[:2])
        if state is not None:
            places_BT = places_BT + state["filled"][:, None]
        if self.lrpe is not None:
            places_BT = places_BT % self.block_size
            q_BTHK, k_BTHK = self.lrpe(q_BTHK, places_BT), self.lrpe(k_BTHK, places_BT)
        if state is None:
            o_BTHV = block_local_attention(
                q_BTHK,
                k_BTHK,
                v_BTHV,
                block_size=self.block_size,
                scores=self.scores,
                direction=self.direction,
                segment_ids_BT=segment_ids,
            )
        else:
            o_BTHV, state = self._attend_from_state(q_BTHK, k_BTHK, v_BTHV, segment_ids, state)
        o_BTD = merge_heads(o_BTHV)
        if self.output_norm is not None:
            o_BTD = self.output_norm(o_BTD)
        return self.output(o_BTD), state

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token, averaged over a block; see `Mixer.flops_per_token`."""
        size = min(self.block_size, context)
        seen = size if self.direction == "bidirectional" else (size + 1) / 2
        return int(4 * self.heads * self.head_width * seen)

    def _attend_from_state(self, q, k, v, segment_ids, state):
        """Attends from new tokens, which follow the `filled` tokens of the block in each row."""
        time, size, filled_B = q.shape[1], self.block_size, state["filled"]
        if segment_ids is None:
            segment_ids = jnp.broadcast_to(state["segment"][:, None], q.shape[:2])
        run_BT = segments.next_index(state["run"], state["segment"], segment_ids)
        # Whole blocks: the block of the state, and all blocks that the new tokens may reach.
        blocks = (size - 1 + time) // size + (time > 1)
        place = jax.vmap(lambda row, x, start: lax.dynamic_update_slice_in_dim(row, x, start, 0))
        slots_M = jnp.arange(blocks * size)

        def lay_out(held, new):
            padding = [(0, 0), (0, (blocks - 1) * size)] + [(0, 0)] * (held.ndim - 2)
            return place(jnp.pad(held, padding), new.astype(held.dtype), filled_B)

        rows = {
            "keys": lay_out(state["keys"], k),
            "values": lay_out(state["values"], v),
            "runs": lay_out(state["runs"], run_BT),
        }
        if time == 1:
            seen_BS = (slots_M <= filled_B[:, None]) & (rows["runs"] == run_BT)
            o = attend(q, rows["keys"], rows["values"], seen_BS[:, None], scores=self.scores)
        else:
            o = block_local_attention(
                lay_out(jnp.zeros_like(state["keys"]), q),
                rows["keys"],
                rows["values"],
                block_size=size,
                scores=self.scores,
                segment_ids_BT=rows["runs"],
            )
            take = jax.vmap(lambda row, start: lax.dynamic_slice_in_dim(row, start, time, 0))
            o = take(o, filled_B)
        end_B = filled_B + time
        # The next state holds the block of the next token; a complete block is dropped.
        start_B, filled_B = end_B // size * size, end_B % size
        if time == 1:
            start_B = jnp.zeros_like(start_B)
        take = jax.vmap(lambda row, start: lax.dynamic_slice_in_dim(row, start, size, 0))

        def keep(row):
            block = take(row, start_B)
            kept_BS = slots_M[:size] < filled_B[:, None]
            return jnp.where(kept_BS.reshape(*kept_BS.shape, *[1] * (block.ndim - 2)), block, 0)

        kept = {name: keep(row) for name, row in rows.items()}
        last = {"segment": segment_ids[:, -1], "run": run_BT[:, -1]}
        return o, kept | last | {"filled": filled_B}
