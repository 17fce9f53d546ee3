"""Sparse Transformer: half of the heads attend nearby, half far away (Child et al. 2019)."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.layers.positions import rotate
from linear_transformer.nn.mixers.cached_softmax import CachedSoftmax
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.projected_mixer import ProjectionOptions
from linear_transformer.ops import checks, segments, sequence_parallel
from linear_transformer.ops.block_local import block_local_attention
from linear_transformer.ops.softmax import softmax_attention
from linear_transformer.ops.sparse_softmax import block_sparse_attention, neighbours

PATTERNS = ("strided", "fixed")


class SparseOptions(ProjectionOptions, total=False):
    """Options of `CachedSoftmax`, without a window."""

    cache_capacity: int
    rotary: bool


@mechanism(
    "sparse",
    meaning="softmax attention to near tokens in half of the heads, to distant ones in the others",
    source="Child et al. 2019, arXiv:1904.10509, section 4",
    options={"pattern": "fixed", "block_size": 32, "cache_capacity": 1024},
    rotary=True,
    bidirectional={},
    causal_only=("cache_capacity",),
)
class SparseTransformer(CachedSoftmax):
    """Softmax attention of token t to two sets of tokens s, one for each half of the heads.

    With l = block_size and c = summary, and places counted from the start of the row:

        strided   |t - s| < l                     (t - s) mod l = 0
        fixed     t and s in one block of l       s among the last c tokens of any block

    Causal heads see only s <= t of these.  A query that sees no token, such as one of the first l
    - c tokens in the second set of "fixed", gets 0.  Time is O(T^1.5) at l of about sqrt(T).  A
    sequence over several devices is computed as a whole on each of them.

    Attributes:
      pattern: "strided", for data with a period, or "fixed", for text.
      block_size: l.
      summary: c, at most l; for "fixed".
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        pattern: str = "fixed",
        block_size: int = 128,
        summary: int = 8,
        rngs: nnx.Rngs,
        **options: Unpack[SparseOptions],
    ):
        checks.choice("pattern", pattern, PATTERNS)
        checks.counts(block_size=block_size, summary=summary)
        if heads % 2:
            raise ValueError(f"heads is {heads}; it must be even, half for each set of tokens")
        if pattern == "fixed" and summary > block_size:
            raise ValueError(f"summary ({summary}) is more than block_size ({block_size})")
        super().__init__(width, heads, **options)
        self.key_value_heads = heads
        self.pattern = pattern
        self.block_size = block_size
        self.summary = summary
        self.query, self.key, self.value = (self._linear(width, rngs) for _ in range(3))
        self.output = self._output_layer(rngs)

    def _forward(self, x_BTD, state, segment_ids, positions):
        q_BTHK, k_BTHK, v_BTHK = self._by_head(x_BTD, self.query, self.key, self.value)
        if self.rotary:
            q_BTHK, k_BTHK = rotate(q_BTHK, positions), rotate(k_BTHK, positions)
        o_BTHK, state = self._attend(q_BTHK, k_BTHK, v_BTHK, state, segment_ids)
        return self.output(merge_heads(o_BTHK)), state

    def _attend_to_row(self, q, k, v, segment_ids, **gates):
        del gates

        def on_row(q, k, v, segment_ids):
            run = None if segment_ids is None else segments.segment_index(segment_ids)
            near, far = _halves(q, k, v)
            distant = self._columns if self.pattern == "strided" else self._summaries
            return jnp.concatenate([self._near(*near, run), distant(*far, run)], axis=2)

        return sequence_parallel.on_whole_rows(on_row, q, k, v, segment_ids)

    def _near(self, q, k, v, run):
        size = self.block_size
        if self.pattern == "strided" and self.direction == "causal":
            return softmax_attention(q, k, v, window=size, segment_ids_BT=run, form=self.form)
        if self.pattern == "strided":
            blocks = neighbours(-(-q.shape[1] // size), 1)
            return block_sparse_attention(
                q, k, v, blocks, block_size=size, reach=size - 1, segment_ids_BT=run
            )
        return block_local_attention(
            q, k, v, block_size=size, direction=self.direction, segment_ids_BT=run
        )

    def _columns(self, q, k, v, run):
        """Attends to every l-th token: rows of l tokens are a table, and its columns sequences."""
        batch, time, size = q.shape[0], q.shape[1], self.block_size

        def columns(x: Array) -> Array:
            x = jnp.pad(x, ((0, 0), (0, -time % size), *[(0, 0)] * (x.ndim - 2)))
            return (
                x.reshape(batch, -1, size, *x.shape[2:])
                .swapaxes(1, 2)
                .reshape(batch * size, -1, *x.shape[2:])
            )

        exist = jnp.ones((batch, time), bool)
        o = softmax_attention(
            *(columns(x) for x in (q, k, v)),
            direction=self.direction,
            segment_ids_BT=None if run is None else columns(run),
            key_mask_BS=columns(exist) if self.direction == "bidirectional" else None,
            form=self.form,
        )
        o = o.reshape(batch, size, -1, *o.shape[2:]).swapaxes(1, 2)
        return o.reshape(batch, -1, *o.shape[3:])[:, :time]

    def _summaries(self, q, k, v, run):
        time, size = q.shape[1], self.block_size
        places = [s for s in range(time) if s % size >= size - self.summary]
        places_S = jnp.asarray(places, jnp.int32)

        def tiled(x):
            return jnp.tile(x, (q.shape[0], 1))

        return softmax_attention(
            q,
            k[:, places_S],
            v[:, places_S],
            direction=self.direction,
            segment_ids_BT=run,
            key_segment_ids_BS=None if run is None else run[:, places_S],
            query_positions_BT=tiled(jnp.arange(time)),
            key_positions_BS=tiled(places_S),
            form=self.form,
        )

    def _attend_to_keys(self, q, k, v, **where):
        """Attends to the cache, in which slot i holds token i."""
        places = [where["query_positions_BT"], where["key_positions_BS"]]
        runs = [where["segment_ids_BT"], where["key_segment_ids_BS"]]
        size = self.block_size

        def attend(tokens, key_positions, ids, window=None):
            return softmax_attention(
                *tokens,
                window=window,
                segment_ids_BT=ids[0],
                key_segment_ids_BS=ids[1],
                query_positions_BT=places[0],
                key_positions_BS=key_positions,
                form=self.form,
            )

        near, far = _halves(q, k, v)
        if self.pattern == "strided":
            columns = [run * size + place % size for run, place in zip(runs, places, strict=True)]
            o_near = attend(near, places[1], runs, window=size)
            o_far = attend(far, places[1], columns)
        else:
            count = -(-self.slots // size)
            blocks = [run * count + place // size for run, place in zip(runs, places, strict=True)]
            summaries = jnp.where(places[1] % size >= size - self.summary, places[1], -1)
            o_near = attend(near, places[1], blocks)
            o_far = attend(far, summaries, runs)
        return jnp.concatenate([o_near, o_far], axis=2)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token at the mean context; see `Mixer.flops_per_token`."""
        size, both = min(self.block_size, context), self.direction == "bidirectional"
        whole = context if both else (context + 1) / 2
        if self.pattern == "strided":
            near, far = min((1 + both) * size, context), whole / size
        else:
            near = size if both else (size + 1) / 2
            far = whole * min(self.summary, size) / size
        return int(2 * self.heads * self.key_width * (near + far))


def _halves(q: Array, k: Array, v: Array) -> tuple[tuple[Array, Array, Array], ...]:
    """Returns queries, keys and values of the first half of the heads, and of the second half."""
    (q0, q1), (k0, k1), (v0, v1) = (jnp.split(x, 2, axis=2) for x in (q, k, v))
    return (q0, k0, v0), (q1, k1, v1)
