"""Mixed chunk attention, FLASH: quadratic within a chunk, linear across chunks.

Hua, Dai, Liu and Le 2022, "Transformer Quality in Linear Time", section 3.2.  For token t of chunk
g, with chunks of C tokens aligned to the start of the sequence,

    o_t = sum_{s <= t, s in g} max(q_t.k_s / C + b_{t-s}, 0)^2 v_s  +  q'_t^T S_g
    S_g = sum_{h < g} sum_{s in h} k'_s v_s^T / C

The state holds S of the finished chunks and the tokens of the current chunk: its size is constant.
In bidirectional attention the first sum runs over the whole chunk, the second over the sequence.

A non-finite token makes the outputs of the tokens that see it NaN, and changes no other output and
no gradient of another output.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.ops import checks, segments, sequence_parallel
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.non_finite import contained, finite_tokens, keep, set_nan
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import SegmentIds

DIRECTIONS = ("causal", "bidirectional")


class MixedChunkState(NamedTuple):
    """State of mixed chunk attention; all zeros before the first token."""

    sums: Float[Array, "B K V"]  # over the finished chunks, for the last finished token's segment
    sums_segment: Int[Array, " B"]
    keys: Float[Array, "B C K"]  # of the current chunk, like the next three
    linear_keys: Float[Array, "B C K"]
    values: Float[Array, "B C V"]
    segments: Int[Array, "B C"]
    segment: Int[Array, " B"]  # of the last token
    length: Int[Array, " B"]  # tokens seen so far

    @classmethod
    def zeros(cls, batch: int, chunk: int, key_width: int, value_width: int, dtype: jnp.dtype):
        def zeros(*shape: int, dtype: Any = dtype) -> Array:
            return jnp.zeros((batch, *shape), dtype)  # separate buffers, which can be donated

        return cls(
            sums=zeros(key_width, value_width, dtype=accumulation_dtype(jnp.zeros((), dtype))),
            sums_segment=zeros(dtype=jnp.int32),
            keys=zeros(chunk, key_width),
            linear_keys=zeros(chunk, key_width),
            values=zeros(chunk, value_width),
            segments=zeros(chunk, dtype=jnp.int32),
            segment=zeros(dtype=jnp.int32),
            length=zeros(dtype=jnp.int32),
        )


def mixed_chunk_attention(
    q_BTK: Float[Array, "B T K"],
    k_BTK: Float[Array, "B T K"],
    linear_q_BTK: Float[Array, "B T K"],
    linear_k_BTK: Float[Array, "B T K"],
    v_BTV: Float[Array, "B T V"],
    bias_E: Float[Array, " E"],
    *,
    chunk_size: int,
    direction: str = "causal",
    state: MixedChunkState | None = None,
    segment_ids_BT: SegmentIds | None = None,
) -> tuple[Float[Array, "B T V"], MixedChunkState | None]:
    """Computes mixed chunk attention in time and memory linear in T.

    Args:
      q_BTK, k_BTK: queries and keys of the quadratic part.
      linear_q_BTK, linear_k_BTK: queries and keys of the linear part.
      v_BTV: values of both parts.
      bias_E: b by distance t - s, for 0 to C - 1, or for 1 - C to C - 1 if bidirectional.
      chunk_size: C.
      direction: "causal" or "bidirectional".
      state: causal only: the state after the earlier tokens; their number may differ between
        sequences.
      segment_ids_BT: packed segments, runs of equal ids; None continues the state's last segment.

    Returns:
      The output in the dtype of v, and the state after the last token; None if bidirectional.
      Matrix products have operands in the result type of all five arrays, or in the dtype of the
      state; sums are fp32 (fp64 for fp64 inputs).

    Raises:
      ValueError: an argument has a wrong type, shape or value, or a state is given for
        bidirectional attention.
    """
    checks.choice("direction", direction, DIRECTIONS)
    checks.counts(chunk_size=chunk_size)
    C = chunk_size
    sizes = checks.arrays(
        {"E": C if direction == "causal" else 2 * C - 1},
        q_BTK=q_BTK,
        k_BTK=k_BTK,
        linear_q_BTK=linear_q_BTK,
        linear_k_BTK=linear_k_BTK,
        v_BTV=v_BTV,
        bias_E=bias_E,
    )
    checks.tokens(sizes, segment_ids_BT=segment_ids_BT)
    B, T, K, V = (sizes[axis] for axis in "BTKV")
    arrays = (q_BTK, k_BTK, linear_q_BTK, linear_k_BTK, v_BTV)
    narrow = jnp.result_type(*arrays)
    if direction != "causal":
        if state is not None:
            raise ValueError(f"a state with direction {direction!r}: it is for causal attention")
        if 0 in (B, T):
            return jnp.zeros_like(v_BTV), None
        q, k, linear_q, linear_k, v = (x.astype(narrow) for x in arrays)
        o_BTV = _bidirectional(q, k, linear_q, linear_k, v, bias_E, C, segment_ids_BT)
        return o_BTV.astype(v_BTV.dtype), None
    shards = sequence_parallel.shards()
    start = state is None and shards == 1
    if state is None:
        state = MixedChunkState.zeros(B, C, K, V, narrow)
    _check_state(state, sizes | {"C": C})
    if 0 in (B, T):
        return jnp.zeros_like(v_BTV), state
    if shards > 1:
        state = _entering(state, k_BTK, linear_k_BTK, v_BTV, segment_ids_BT)
    if segment_ids_BT is None:
        segment_ids_BT = jnp.broadcast_to(state.segment[:, None], (B, T))

    # Keys go to their places in a grid of whole chunks, after the keys of the current chunk.
    N = -(-T // C) if start else -(-(T + C - 1) // C)
    offset_B = state.length % C
    place = jax.vmap(lambda row, x, i: lax.dynamic_update_slice_in_dim(row, x, i, 0))

    def to_grid(x, past):
        grid = jnp.pad(past, ((0, 0), (0, N * C - C), *[(0, 0)] * (x.ndim - 2)))
        return place(grid, x.astype(past.dtype), offset_B)

    keys = to_grid(k_BTK, state.keys)
    linear_keys = to_grid(linear_k_BTK, state.linear_keys)
    values = to_grid(v_BTV, state.values)
    ids = to_grid(segment_ids_BT, state.segments)

    if T == 1 and not start:
        starts = ids != jnp.concatenate([state.sums_segment[:, None], ids[:, :-1]], axis=1)
        grid = (keys, linear_keys, values, starts)
        o_BTV, sums = _one_token(q_BTK, linear_q_BTK, grid, bias_E, state.sums, offset_B)
    else:
        run = segments.next_index(jnp.zeros_like(offset_B), state.sums_segment, ids)
        grid = (keys, linear_keys, values, run)
        q, linear_q = (to_grid(x, jnp.zeros_like(state.keys)) for x in (q_BTK, linear_q_BTK))
        finished_B = (offset_B + T) // C
        o_BTV, sums = _chunks(q, linear_q, grid, bias_E, state.sums, finished_B)
        cut = jax.vmap(lambda row, i: lax.dynamic_slice_in_dim(row, i, T, 0))
        o_BTV = cut(o_BTV, offset_B)

    # The current chunk follows the last finished chunk; after the end of the grid it is empty.
    current_B = (offset_B + T) // C * C
    cut = jax.vmap(lambda row, i: lax.dynamic_slice_in_dim(row, i, C, 0))

    def current(x):
        if N == 1:
            return jnp.where((current_B > 0).reshape(B, *[1] * (x.ndim - 1)), 0, x)
        return cut(jnp.pad(x, ((0, 0), (0, C), *[(0, 0)] * (x.ndim - 2))), current_B)

    last = jnp.take_along_axis(ids, jnp.maximum(current_B - 1, 0)[:, None], axis=1)[:, 0]
    state = MixedChunkState(
        sums=sums,
        sums_segment=jnp.where(current_B > 0, last, state.sums_segment),
        keys=current(keys),
        linear_keys=current(linear_keys),
        values=current(values),
        segments=current(ids),
        segment=segment_ids_BT[:, -1],
        length=state.length + T,
    )
    state = jax.tree.map(sequence_parallel.of_last, state)
    return o_BTV.astype(v_BTV.dtype), state


def _check_state(state, sizes):
    checks.state("state", state, MixedChunkState)
    floats = {"sums": "BKV", "keys": "BCK", "linear_keys": "BCK", "values": "BCV"}
    integers = {"sums_segment": "B", "segments": "BC", "segment": "B", "length": "B"}
    for check, axes in ((checks.arrays, floats), (checks.tokens, integers)):
        leaves: dict[str, Any] = {f"state.{x}": (getattr(state, x), axes[x]) for x in axes}
        check(sizes, **leaves)


def _entering(zeros, k, linear_k, v, segment_ids_BT):
    """Returns the state that the earlier shards leave to this shard.

    A shard adds to the sums all chunks that end in it; they may begin in an earlier shard.
    """
    (B, T), C = k.shape[:2], zeros.keys.shape[1]
    if segment_ids_BT is None:
        segment_ids_BT = jnp.zeros((B, T), jnp.int32)
    arrays = (k, linear_k, v, segment_ids_BT)
    arrays = tuple(sequence_parallel.halo(x, before=C) for x in arrays)
    _, linear_k, v, ids = arrays

    offset = sequence_parallel.offset(T)
    first = C - offset % C  # start of the current chunk, after the last finished token
    end = first + (offset + T) // C * C - offset // C * C  # of the chunks finished here
    places = jnp.arange(C + T)
    run = segments.segment_index(ids)
    finished = end > first

    def at(x, place):
        return lax.dynamic_index_in_dim(x, place, axis=1, keepdims=False)

    before_B, end_B = at(ids, first - 1), at(ids, end - 1)
    first_B = jnp.where(finished, at(ids, first), before_B)
    added = (places >= first) & (places < end) & (run == at(run, end - 1)[:, None])
    linear_k, added_v = keep(added, linear_k), keep(added, v)
    update = jnp.einsum("btk,btv->bkv", linear_k, added_v, preferred_element_type=zeros.sums.dtype)
    update /= C
    one_run_B = ~finished | (at(run, first) == at(run, end - 1))
    sums = sequence_parallel.entering_state(
        one_run_B[:, None, None].astype(update.dtype),
        update,
        zeros.sums,
        jnp.stack([first_B, end_B], axis=1),
    )

    def current(x):
        x = jnp.pad(x, ((0, 0), (0, C), *[(0, 0)] * (x.ndim - 2)))
        return lax.dynamic_slice_in_dim(x, first, C, axis=1)

    keys, linear_keys, values, of_chunk = (current(x) for x in arrays)
    return MixedChunkState(
        sums=sums,
        sums_segment=before_B,
        keys=keys,
        linear_keys=linear_keys,
        values=values,
        segments=of_chunk,
        segment=at(ids, C - 1),
        length=jnp.full((B,), offset, jnp.int32),
    )


def _bidirectional(q, k, linear_q, linear_k, v, bias_E, C, segment_ids_BT):
    B, T = q.shape[:2]
    dtype = accumulation_dtype(q, k, v)
    run_BT = jnp.zeros((B, T), jnp.int32)
    if segment_ids_BT is not None:
        run_BT = sequence_parallel.segment_index(segment_ids_BT)
    place, arrays = 0, (q, k, v, run_BT + 1)  # 0 is padding
    if sequence_parallel.shards() > 1:
        arrays, place = sequence_parallel.blocks(arrays, C, after=True)

    def chunked(x):
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % C), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(B, -1, C, *x.shape[2:])

    q, k, values, run = (x.reshape(-1, *x.shape[2:]) for x in map(chunked, arrays))  # B N, C
    visible = (run[:, :, None] == run[:, None]) & (run > 0)[..., None]
    q, k, values, affected = contained(q, k, values, visible)
    distance_CC = jnp.arange(C)[:, None] - jnp.arange(C)
    scores = jnp.einsum("nck,ndk->ncd", q, k, preferred_element_type=dtype)
    weights = _weights(scores, bias_E, distance_CC, visible, C).astype(values.dtype)
    o = jnp.einsum("ncd,ndv->ncv", weights, values, preferred_element_type=dtype)
    o = set_nan(affected, o).reshape(B, -1, v.shape[-1])
    o = lax.dynamic_slice_in_dim(o, place, T, axis=1)
    linear, _ = linear_attention(
        linear_q[:, :, None],
        linear_k[:, :, None],
        v[:, :, None],
        direction="bidirectional",
        feature_map=None,
        normalize=False,
        segment_ids_BT=segment_ids_BT,
    )
    return o + linear[:, :, 0] / C


def _weights(scores, bias_E, distance, visible, C):
    """Computes max(score / C + bias, 0)^2 for visible pairs."""
    nth = distance + bias_E.shape[0] - C
    scores = scores / C + bias_E.astype(scores.dtype)[jnp.clip(nth, 0, bias_E.shape[0] - 1)]
    return jnp.square(jnp.where(visible, jax.nn.relu(scores), 0))


def _update(sums, goes_on_B, linear_k_BCK, v_BCV, in_last_BC):
    """Returns the sums after a finished chunk, for the segment of its last token."""
    linear_k_BCK, v_BCV = keep(in_last_BC, linear_k_BCK), keep(in_last_BC, v_BCV)
    update = jnp.einsum("bck,bcv->bkv", linear_k_BCK, v_BCV, preferred_element_type=sums.dtype)
    return update / in_last_BC.shape[1] + jnp.where(goes_on_B[:, None, None], sums, 0)


def _chunks(q, linear_q, grid, bias_E, sums, finished_B):
    """Scans over the chunks; the backward pass stores the sums that enter each chunk."""
    keys, linear_keys, values, run = grid
    C = bias_E.shape[0]
    batch = q.shape[0]
    distance_CC = jnp.arange(C)[:, None] - jnp.arange(C)

    def chunked(x):
        return jnp.moveaxis(x.reshape(batch, -1, C, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def step(carry, chunk):
        sums, last_B = carry
        n, q, linear_q, k, linear_k, v, run = chunk
        visible = (distance_CC >= 0) & (run[:, :, None] == run[:, None])
        reads_BC, end_B = run == last_B[:, None], run[:, -1]
        in_last_BC, goes_on_B = run == end_B[:, None], end_B == last_B
        # Non-finite tokens are taken out of the products; NaN is put into the outputs after.
        asks_BC, gives_BC = finite_tokens(q, linear_q), finite_tokens(k, linear_k, v)
        held_B = jnp.all(jnp.isfinite(sums), axis=(1, 2))
        q, linear_q = keep(asks_BC, q), keep(asks_BC, linear_q)
        k, linear_k, v = (keep(gives_BC, x) for x in (k, linear_k, v))
        carried = jnp.where(held_B[:, None, None], sums, 0)
        scores = jnp.einsum("bck,bdk->bcd", q, k, preferred_element_type=sums.dtype)
        weights = _weights(scores, bias_E, distance_CC, visible, C).astype(v.dtype)
        o = jnp.einsum("bcd,bdv->bcv", weights, v, preferred_element_type=sums.dtype)
        reader, state = keep(reads_BC, linear_q), carried.astype(q.dtype)
        o += jnp.einsum("bck,bkv->bcv", reader, state, preferred_element_type=sums.dtype)
        affected_BC = jnp.any(visible & ~gives_BC[:, None], axis=2) | ~asks_BC
        o = set_nan(affected_BC | (reads_BC & ~held_B[:, None]), o)
        update = _update(carried, goes_on_B, linear_k, v, in_last_BC)
        lost_B = jnp.any(in_last_BC & ~gives_BC, axis=1) | (goes_on_B & ~held_B)
        update = jnp.where(lost_B[:, None, None], jnp.nan, update)
        finished = n < finished_B
        sums = jnp.where(finished[:, None, None], update, sums)
        return (sums, jnp.where(finished, end_B, last_B)), o.astype(v.dtype)

    xs = [chunked(x) for x in (q, linear_q, keys, linear_keys, values, run)]
    numbers = jnp.arange(len(xs[0]))
    (sums, _), o_NBCV = lax.scan(step, (sums, jnp.zeros_like(run[:, 0])), (numbers, *xs))
    return jnp.moveaxis(o_NBCV, 0, 1).reshape(batch, -1, values.shape[-1]), sums


def _one_token(q_BTK, linear_q_BTK, grid, bias_E, sums, offset_B):
    """Computes one query in one chunk, in O(C (K + V) + K V) if the chunk is not finished."""
    k_BCK, linear_k_BCK, v_BCV, starts_BC = grid  # starts of segments, also of later tokens
    C = bias_E.shape[0]
    distance_BC = offset_B[:, None] - jnp.arange(C)
    starts_BC &= distance_BC >= 0
    start_B = jnp.max(jnp.where(starts_BC, jnp.arange(C), -1), axis=1)  # -1: before the chunk
    visible_BC = (distance_BC >= 0) & (jnp.arange(C) >= start_B[:, None])
    reads_B = start_B < 0
    # A NaN that the query sees reaches its output by itself; all other tokens are masked.
    k_BCK, seen_v_BCV = keep(visible_BC, k_BCK), keep(visible_BC, v_BCV)
    seen_sums = jnp.where(reads_B[:, None, None], sums, 0).astype(q_BTK.dtype)
    scores_BTC = jnp.einsum("btk,bck->btc", q_BTK, k_BCK, preferred_element_type=sums.dtype)
    weights = _weights(scores_BTC, bias_E, distance_BC[:, None], visible_BC[:, None], C)
    weights = weights.astype(v_BCV.dtype)
    o = jnp.einsum("btc,bcv->btv", weights, seen_v_BCV, preferred_element_type=sums.dtype)
    o += jnp.einsum("btk,bkv->btv", linear_q_BTK, seen_sums, preferred_element_type=o.dtype)
    finished_B = offset_B == C - 1

    def updated():
        update = _update(sums, reads_B, linear_k_BCK, v_BCV, visible_BC)
        return jnp.where(finished_B[:, None, None], update, sums)

    return o, lax.cond(jnp.any(finished_B), updated, lambda: sums)
