"""Mixed chunk attention, FLASH: quadratic within a chunk, linear across chunks.

Hua, Dai, Liu and Le 2022, "Transformer Quality in Linear Time", section 3.2.  For token t of chunk
g, with chunks of C tokens aligned to the start of the row,

    o_t = sum_{s <= t, s in g} max(q_t.k_s / C + b_{t-s}, 0)^2 v_s  +  q'_t^T S_g
    S_g = sum_{h < g} sum_{s in h} k'_s v_s^T / C

The state holds S of the finished chunks and the tokens of the current one: its size is constant.
Bidirectional, both sums run over all s, of the chunk and of the row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.ops import segments, sequence_parallel
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import SegmentIds


class MixedChunkState(NamedTuple):
    """All zeros before the first token."""

    sums: Float[Array, "B K V"]  # over the finished chunks; of the last one's last segment
    sums_segment: Int[Array, " B"]
    keys: Float[Array, "B C K"]  # of the current chunk, as the next three
    linear_keys: Float[Array, "B C K"]
    values: Float[Array, "B C V"]
    segments: Int[Array, "B C"]
    segment: Int[Array, " B"]  # of the last token
    length: Int[Array, " B"]  # tokens seen so far

    @classmethod
    def zeros(cls, batch: int, chunk: int, key_width: int, value_width: int, dtype: jnp.dtype):
        def zeros(*shape: int, dtype: Any = dtype) -> Array:
            return jnp.zeros((batch, *shape), dtype)  # each its own buffer, to be donated

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
    """Attention in time and memory linear in T.

    Args:
      q_BTK, k_BTK: of the quadratic part.
      linear_q_BTK, linear_k_BTK: of the linear part.
      v_BTV: of both.
      bias_E: b by distance t - s: of 0 to C - 1, or of 1 - C to C - 1 for bidirectional attention.
      chunk_size: C.
      direction: "causal" or "bidirectional".
      state: causal only: of the tokens before; rows may have seen different numbers of them.
      segment_ids_BT: packed documents; None goes on with the state's.

    Returns:
      The output in the dtype of v, and the state after the last token; None for bidirectional.

    Raises:
      ValueError: shapes that do not fit, an unknown direction, or a state that is not causal.
    """
    B, T, K = q_BTK.shape
    C, V = chunk_size, v_BTV.shape[-1]
    if any(x.shape != q_BTK.shape for x in (k_BTK, linear_q_BTK, linear_k_BTK)) or (
        v_BTV.shape[:2] != (B, T)
    ):
        shapes = [x.shape for x in (q_BTK, k_BTK, linear_q_BTK, linear_k_BTK, v_BTV)]
        raise ValueError(f"queries, keys, linear queries, linear keys and values {shapes} differ")
    if direction not in ("causal", "bidirectional"):
        raise ValueError(f"direction is {direction!r}; choose causal or bidirectional")
    distances = C if direction == "causal" else 2 * C - 1
    if C < 1 or bias_E.shape != (distances,):
        raise ValueError(f"chunk_size is {C} and bias_E {bias_E.shape}, not {(distances,)}")
    if direction != "causal":
        if state is not None:
            raise ValueError(f"a state with direction {direction!r}: it is for causal attention")
        arrays = (q_BTK, k_BTK, linear_q_BTK, linear_k_BTK, v_BTV)
        return _bidirectional(*arrays, bias_E, C, segment_ids_BT), None
    shards = sequence_parallel.shards()
    start = state is None and shards == 1
    if state is None:
        state = MixedChunkState.zeros(B, C, K, V, v_BTV.dtype)
    if shards > 1:
        state = _entering(state, k_BTK, linear_k_BTK, v_BTV, segment_ids_BT)
    if state.keys.shape != (B, C, K) or state.values.shape != (B, C, V):
        raise ValueError(f"a state of {state.values.shape} does not fit {(B, C, V)}")
    if segment_ids_BT is None:
        segment_ids_BT = jnp.broadcast_to(state.segment[:, None], (B, T))

    # Keys go to their places in a grid of whole chunks, behind those of the current chunk.
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
    run = segments.run_index(jnp.concatenate([state.sums_segment[:, None], ids], axis=1))[:, 1:]
    grid = (keys, linear_keys, values, run)

    if T == 1 and not start:
        o_BTV, sums = _one_token(q_BTK, linear_q_BTK, grid, bias_E, state.sums, offset_B)
    else:
        queries = [to_grid(x, jnp.zeros_like(state.keys)) for x in (q_BTK, linear_q_BTK)]
        finished_B = (offset_B + T) // C
        o_BTV, sums = _chunks(*queries, grid, bias_E, state.sums, finished_B)
        cut = jax.vmap(lambda row, i: lax.dynamic_slice_in_dim(row, i, T, 0))
        o_BTV = cut(o_BTV, offset_B)

    # The current chunk is the one after the last finished one, and empty past the grid.
    current_B = (offset_B + T) // C * C
    cut = jax.vmap(lambda row, i: lax.dynamic_slice_in_dim(row, i, C, 0))

    def current(x):
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


def _entering(zeros, k, linear_k, v, segment_ids_BT):
    """The state that the shards before this one leave to it.

    Of the sums a shard adds those chunks that end in it, which may begin in the shards before.
    """
    (B, T), C = k.shape[:2], zeros.keys.shape[1]
    if segment_ids_BT is None:
        segment_ids_BT = jnp.zeros((B, T), jnp.int32)
    arrays = (k, linear_k, v, segment_ids_BT)
    arrays = tuple(sequence_parallel.halo(x, before=C) for x in arrays)
    _, linear_k, v, ids = arrays

    offset = sequence_parallel.offset(T)
    first = C - offset % C  # of the current chunk; before it is the last finished token
    end = first + (offset + T) // C * C - offset // C * C  # of what is finished here
    places = jnp.arange(C + T)
    run = segments.run_index(ids)
    finished = end > first

    def at(x, place):
        return lax.dynamic_index_in_dim(x, place, axis=1, keepdims=False)

    before_B, end_B = at(ids, first - 1), at(ids, end - 1)
    first_B = jnp.where(finished, at(ids, first), before_B)
    added = (places >= first) & (places < end) & (run == at(run, end - 1)[:, None])
    linear_k = jnp.where(added[..., None], linear_k, 0)
    update = jnp.einsum("btk,btv->bkv", linear_k, v, preferred_element_type=zeros.sums.dtype) / C
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
        run_BT = sequence_parallel.run_index(segment_ids_BT)
    place, arrays = 0, (q, k, v, run_BT + 1)  # 0 is padding
    if sequence_parallel.shards() > 1:
        arrays, place = sequence_parallel.blocks(arrays, C, after=True)

    def chunked(x):
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % C), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(B, -1, C, *x.shape[2:])

    q_BNCK, k_BNCK, v_BNCV, run_BNC = (chunked(x) for x in arrays)
    visible = (run_BNC[..., :, None] == run_BNC[..., None, :]) & (run_BNC > 0)[..., None]
    distance_CC = jnp.arange(C)[:, None] - jnp.arange(C)
    scores = jnp.einsum("bnck,bndk->bncd", q_BNCK, k_BNCK, preferred_element_type=dtype)
    weights = _weights(scores, bias_E, distance_CC, visible, C).astype(v.dtype)
    o = jnp.einsum("bncd,bndv->bncv", weights, v_BNCV, preferred_element_type=dtype)
    o = lax.dynamic_slice_in_dim(o.reshape(B, -1, v.shape[-1]), place, T, axis=1)
    linear, _ = linear_attention(
        linear_q[:, :, None],
        linear_k[:, :, None],
        v[:, :, None],
        direction="bidirectional",
        feature_map=None,
        normalize=False,
        segment_ids_BT=segment_ids_BT,
    )
    return (o + linear[:, :, 0] / C).astype(v.dtype)


def _weights(scores, bias_E, distance, visible, C):
    """max(score / C + bias, 0)^2 where visible."""
    nth = distance + bias_E.shape[0] - C
    scores = scores / C + bias_E.astype(scores.dtype)[jnp.clip(nth, 0, bias_E.shape[0] - 1)]
    return jnp.square(jnp.where(visible, jax.nn.relu(scores), 0))


def _update(sums, linear_k_BCK, v_BCV, run_BC):
    """The sums after a finished chunk: what is in the segment of its last token."""
    end_B = run_BC[:, -1]
    linear_k_BCK = jnp.where((run_BC == end_B[:, None])[..., None], linear_k_BCK, 0)
    update = jnp.einsum("bck,bcv->bkv", linear_k_BCK, v_BCV, preferred_element_type=sums.dtype)
    return update / run_BC.shape[1], end_B


def _chunks(q, linear_q, grid, bias_E, sums, finished_B):
    """A scan over chunks; the backward pass keeps the sums that enter each."""
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
        scores = jnp.einsum("bck,bdk->bcd", q, k, preferred_element_type=sums.dtype)
        weights = _weights(scores, bias_E, distance_CC, visible, C).astype(v.dtype)
        o = jnp.einsum("bcd,bdv->bcv", weights, v, preferred_element_type=sums.dtype)
        reader = jnp.where((run == last_B[:, None])[..., None], linear_q, 0)
        state = sums.astype(q.dtype)
        o += jnp.einsum("bck,bkv->bcv", reader, state, preferred_element_type=sums.dtype)
        update, end_B = _update(sums, linear_k, v, run)
        update += jnp.where((end_B == last_B)[:, None, None], sums, 0)
        finished = n < finished_B
        sums = jnp.where(finished[:, None, None], update, sums)
        return (sums, jnp.where(finished, end_B, last_B)), o.astype(v.dtype)

    xs = [chunked(x) for x in (q, linear_q, keys, linear_keys, values, run)]
    numbers = jnp.arange(len(xs[0]))
    (sums, _), o_NBCV = lax.scan(step, (sums, jnp.zeros_like(run[:, 0])), (numbers, *xs))
    return jnp.moveaxis(o_NBCV, 0, 1).reshape(batch, -1, values.shape[-1]), sums


def _one_token(q_BTK, linear_q_BTK, grid, bias_E, sums, offset_B):
    """One query, one chunk: O(C (K + V) + K V)."""
    k_BCK, linear_k_BCK, v_BCV, run_BC = grid
    C = bias_E.shape[0]
    distance_BC = offset_B[:, None] - jnp.arange(C)
    own_B = jnp.take_along_axis(run_BC, offset_B[:, None], axis=1)
    visible_BC = (distance_BC >= 0) & (run_BC == own_B)
    scores_BTC = jnp.einsum("btk,bck->btc", q_BTK, k_BCK, preferred_element_type=sums.dtype)
    weights = _weights(scores_BTC, bias_E, distance_BC[:, None], visible_BC[:, None], C)
    o = jnp.einsum(
        "btc,bcv->btv", weights.astype(v_BCV.dtype), v_BCV, preferred_element_type=sums.dtype
    )
    reader = jnp.where((own_B == 0)[..., None], linear_q_BTK, 0)
    o += jnp.einsum(
        "btk,bkv->btv", reader, sums.astype(q_BTK.dtype), preferred_element_type=o.dtype
    )
    update, end_B = _update(sums, linear_k_BCK, v_BCV, run_BC)
    update += jnp.where((end_B == 0)[:, None, None], sums, 0)
    return o, jnp.where((offset_B == C - 1)[:, None, None], update, sums)
