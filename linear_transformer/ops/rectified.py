"""Rectified attention: weights are a power of max(score, 0), without a softmax.

    o_t = sum_s max(a q_t.k_s + b_{t-s}, 0)^p v_s

p = 1 without bias is ReLA (Zhang, Titov and Sennrich 2021, "Sparse Attention with Linear Units",
equation 5); p = 2 with a bias by distance is the attention of the gated attention unit (Hua et al.
2022, "Transformer Quality in Linear Time", section 3.1).  The keys of a query share no normaliser,
so a loop over blocks of queries is exact, and a window needs only its own keys.

A non-finite key or value makes the outputs of the queries that may see it NaN, even if its weight
would be 0, and changes no other output and no gradient of another output.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.blocks import pair_products, weighted_sum
from linear_transformer.ops.non_finite import contained, set_nan
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import (
    KeyMask,
    Keys,
    Outputs,
    Positions,
    Queries,
    SegmentIds,
    Values,
)

DIRECTIONS = ("causal", "bidirectional")
BLOCK_SIZE = 256


def rectified_attention(
    q_BTHK: Queries,
    k_BSHK: Keys,
    v_BSHV: Values,
    *,
    direction: str = "causal",
    scale: float | None = None,
    power: int = 1,
    bias_E: Float[Array, " E"] | None = None,
    window: int | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_segment_ids_BS: Int[Array, "B S"] | None = None,
    key_mask_BS: KeyMask | None = None,
    query_positions_BT: Positions | None = None,
    key_positions_BS: Int[Array, "B S"] | None = None,
    block_size: int | None = None,
) -> Outputs:
    """Computes rectified attention, with the scores of one block of queries in memory.

    Without positions, the S keys are the keys of the T queries and of the S - T tokens before them:
    query t stands at key S - T + t.

    Args:
      q_BTHK, k_BSHK, v_BSHV: queries, keys and values; S >= T without positions.
      direction: "causal": a query sees the keys at its own place and before; "bidirectional": all.
      scale: factor a on the products, positive; K**-0.5 if None.
      power: p, 1 or more.
      bias_E: b by distance t - s, the same for all heads: for 0 to S - 1, or for 1 - S to S - 1 if
        bidirectional, with S keys in the whole sequence.
      window: causal only: a query sees itself and the window - 1 keys before it; None sees all.
      segment_ids_BT: packed segments, runs of equal ids; each query sees only its own segment.
      key_segment_ids_BS: for S > T: a query sees the keys of equal ids, in any order.  If an id
        occurs in several runs, number the runs (`segments.segment_index`).
      key_mask_BS: False drops the key exactly, even if it is NaN.
      query_positions_BT, key_positions_BS: positions of the queries, and of the keys in any order,
        as in a KV cache; both or none.  A key at a negative position is an empty slot, which no
        query sees.
      block_size: queries per block; chosen if None.

    Returns:
      o_BTHV, in the dtype of v; 0 where no score is positive.  Matrix products have operands in the
      result type of q, k and v; sums are fp32 (fp64 for fp64 inputs).

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    checks.choice("direction", direction, DIRECTIONS)
    sizes = checks.arrays(q_BTHK=q_BTHK, k_BSHK=k_BSHK, v_BSHV=v_BSHV)
    checks.tokens(
        sizes,
        segment_ids_BT=segment_ids_BT,
        key_segment_ids_BS=key_segment_ids_BS,
        key_mask_BS=key_mask_BS,
        query_positions_BT=query_positions_BT,
        key_positions_BS=key_positions_BS,
    )
    ordered = key_positions_BS is None
    if ordered != (query_positions_BT is None):
        raise ValueError("positions of only the queries or only the keys")
    B, T, H, K, S = (sizes[axis] for axis in "BTHKS")
    if ordered and S < T:
        raise ValueError(f"{T} queries and {S} keys: every query stands at a key")
    checks.counts(power=power, window=window, block_size=block_size)
    checks.positive(scale=scale)
    causal = direction == "causal"
    if window is not None and not causal:
        raise ValueError(f"window is causal, and direction is {direction!r}")
    row = S * sequence_parallel.shards()
    distances = row if causal else 2 * row - 1
    checks.arrays({"E": distances}, bias_E=(bias_E, "E"))
    if key_segment_ids_BS is not None and segment_ids_BT is None:
        raise ValueError("key_segment_ids_BS without segment_ids_BT")
    if segment_ids_BT is not None and key_segment_ids_BS is None and S > T:
        raise ValueError(f"key_segment_ids_BS is None, and there are {S} keys of {T} queries")
    if 0 in (B, T):
        return jnp.zeros((B, T, H, v_BSHV.shape[3]), v_BSHV.dtype)
    run_BT, run_BS = segment_ids_BT, key_segment_ids_BS
    if run_BT is None:
        run_BT, run_BS = (jnp.zeros((B, n), jnp.int32) for n in (T, S))
    elif run_BS is None:
        run_BT = run_BS = sequence_parallel.segment_index(run_BT)
    if key_mask_BS is None:
        key_mask_BS = jnp.ones((B, S), bool)

    first = before = S - T  # index of the first query's key
    if sequence_parallel.shards() > 1:
        keys = (k_BSHK, v_BSHV, run_BS, key_mask_BS)  # masked beyond the ends of the sequence
        keys, places_S = sequence_parallel.keys_in_reach(keys, window)
        k_BSHK, v_BSHV, run_BS, key_mask_BS = keys
        S = len(places_S)
        first, before = sequence_parallel.offset(T) - places_S[0], S - T
    if query_positions_BT is None or key_positions_BS is None:
        query_positions_BT, key_positions_BS = (first + jnp.arange(T))[None], jnp.arange(S)[None]
    key_mask_BS &= key_positions_BS >= 0

    block = min(T, block_size or BLOCK_SIZE)
    num_blocks = -(-T // block)
    dtype, narrow = (f(q_BTHK, k_BSHK, v_BSHV) for f in (accumulation_dtype, jnp.result_type))
    queries = [_pad(x, 0, num_blocks * block - T) for x in (q_BTHK, run_BT, query_positions_BT)]
    keys, seen = (k_BSHK, v_BSHV, run_BS, key_positions_BS, key_mask_BS), S
    if ordered and window is not None and window - 1 + block < S:
        seen = window - 1 + block
        keys = [_pad(x, max(window - 1 - before, 0), num_blocks * block - T) for x in keys]

    scale = float(K**-0.5) if scale is None else scale

    @jax.checkpoint
    def attend(n):
        start_q = n * block
        # An index of the padded keys; without a window every block of queries has all keys.
        start_k = start_q + max(before - (window - 1), 0) if window and seen < S else 0
        q, *at_q = (lax.dynamic_slice_in_dim(x, start_q, block, 1) for x in queries)
        k, v, *at_k, mask = (lax.dynamic_slice_in_dim(x, start_k, seen, 1) for x in keys)
        query_run, query_position = (x[:, :, None] for x in at_q)
        key_run, key_position = (x[:, None] for x in at_k)
        distance_BCS = query_position - key_position
        visible_BCS = (query_run == key_run) & mask[:, None]
        if causal:
            visible_BCS &= distance_BCS >= 0
        if window is not None:
            visible_BCS &= distance_BCS < window
        q, k, v, affected_BC = contained(q, k, v, visible_BCS)
        scores = pair_products(q, k, dtype) * scale
        if bias_E is not None:
            nth = distance_BCS + distances - row
            scores += bias_E.astype(dtype)[jnp.clip(nth, 0, distances - 1)][:, None]
        weights = jnp.where(visible_BCS[:, None], jax.nn.relu(scores), 0) ** power
        weights = weights.astype(narrow)
        return set_nan(affected_BC, weighted_sum(weights, v, dtype))

    if num_blocks == 1:
        o_BTHV = attend(jnp.zeros((), jnp.int32))
    else:
        o_NBCHV = lax.map(attend, jnp.arange(num_blocks))
        o_BTHV = jnp.moveaxis(o_NBCHV, 0, 1).reshape(B, num_blocks * block, H, -1)[:, :T]
    return o_BTHV.astype(v_BSHV.dtype)


def _pad(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, ((0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)))
