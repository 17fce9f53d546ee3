"""Rectified attention: a power of max(score, 0) for weights, without a softmax.

    o_t = sum_s max(a q_t.k_s + b_{t-s}, 0)^p v_s

p = 1 without bias is ReLA (Zhang, Titov and Sennrich 2021, "Sparse Attention with Linear Units",
equation 5); p = 2 with a bias of the distance is the attention of the gated attention unit (Hua et
al. 2022, "Transformer Quality in Linear Time", section 3.1).  Nothing is shared between the keys of
a query, so a block of queries at a time is exact, and a window needs no more than its own keys.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.ops import sequence_parallel
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import KeyMask, Keys, Outputs, Queries, SegmentIds, Values

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
    block_size: int | None = None,
) -> Outputs:
    """Rectified attention; memory is that of the scores of one block of queries.

    The keys are those of the queries and the S - T before them: query t stands at key S - T + t.

    Args:
      q_BTHK, k_BSHK, v_BSHV: queries, keys and values, S >= T.
      direction: "causal": a query sees the keys at its own place and before; "bidirectional": all.
      scale: factor a on the products; K**-0.5 if None.
      power: p, 1 or more.
      bias_E: b by distance t - s, the same for all heads: of 0 to S - 1, or of 1 - S to S - 1 for
        bidirectional attention, with S keys in the whole row.
      window: causal only: a query sees itself and the window - 1 keys before it; None sees all.
      segment_ids_BT: queries and keys of different segments never meet.
      key_segment_ids_BS: segments of the keys; `segment_ids_BT` if None.
      key_mask_BS: False drops the key exactly.
      block_size: queries at a time; chosen if None.

    Returns:
      o_BTHV, in the dtype of v; 0 where no score is positive.

    Raises:
      ValueError: shapes that do not fit, an unknown direction, a window that is not causal, or a
        power, window or block size that is not positive.
    """
    (B, T, H, K), S = q_BTHK.shape, k_BSHK.shape[1]
    if k_BSHK.shape != (B, S, H, K) or v_BSHV.shape[:3] != (B, S, H) or S < T:
        raise ValueError(
            f"queries {q_BTHK.shape}, keys {k_BSHK.shape} and values {v_BSHV.shape} do not fit"
        )
    for name, value in (("power", power), ("window", window), ("block_size", block_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be positive")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; choose one of {', '.join(DIRECTIONS)}")
    causal = direction == "causal"
    if window is not None and not causal:
        raise ValueError(f"window is causal, and direction is {direction!r}")
    row = S * sequence_parallel.shards()
    distances = row if causal else 2 * row - 1
    if bias_E is not None and bias_E.shape != (distances,):
        raise ValueError(f"bias_E is {bias_E.shape}, not {(distances,)}")
    if segment_ids_BT is None:
        if key_segment_ids_BS is not None:
            raise ValueError("key_segment_ids_BS without segment_ids_BT")
        segment_ids_BT, key_segment_ids_BS = jnp.zeros((B, T), int), jnp.zeros((B, S), int)
    elif key_segment_ids_BS is None:
        key_segment_ids_BS = segment_ids_BT
    if key_segment_ids_BS.shape != (B, S):
        raise ValueError(f"key_segment_ids_BS is {key_segment_ids_BS.shape}, not {(B, S)}")
    if key_mask_BS is None:
        key_mask_BS = jnp.ones((B, S), bool)

    first = before = S - T  # place of the first query among the keys
    if sequence_parallel.shards() > 1:
        keys = (k_BSHK, v_BSHV, key_segment_ids_BS, key_mask_BS)  # beyond the row they are masked
        keys, places_S = sequence_parallel.keys_in_reach(keys, window)
        k_BSHK, v_BSHV, key_segment_ids_BS, key_mask_BS = keys
        S = len(places_S)
        first, before = sequence_parallel.offset(T) - places_S[0], S - T

    block = min(T, block_size or BLOCK_SIZE)
    num_blocks = -(-T // block)
    queries = [_pad(x, 0, num_blocks * block - T) for x in (q_BTHK, segment_ids_BT)]
    keys, seen = (k_BSHK, v_BSHV, key_segment_ids_BS, key_mask_BS), S
    if window is not None and window - 1 + block < S:
        seen = window - 1 + block
        keys = [_pad(x, max(window - 1 - before, 0), num_blocks * block - T) for x in keys]

    dtype = accumulation_dtype(q_BTHK, k_BSHK, v_BSHV)
    scale = K**-0.5 if scale is None else scale

    @jax.checkpoint
    def attend(n):
        start_q = n * block
        # In padded coordinates; without a cut every block sees all keys.
        start_k = start_q + max(before - ((window or S) - 1), 0) if seen < S else 0
        q, query_segments = (lax.dynamic_slice_in_dim(x, start_q, block, 1) for x in queries)
        k, v, key_segments, mask = (lax.dynamic_slice_in_dim(x, start_k, seen, 1) for x in keys)
        at_q = jnp.arange(block) + (window - 1 if seen < S else first + start_q)
        distance_CS = at_q[:, None] - jnp.arange(seen)
        visible_BCS = (query_segments[:, :, None] == key_segments[:, None]) & mask[:, None]
        if causal:
            visible_BCS &= (distance_CS >= 0) & (distance_CS < (window or S))
        scores = jnp.einsum("bchk,bshk->bhcs", q, k, preferred_element_type=dtype) * scale
        if bias_E is not None:
            nth = distance_CS + distances - row
            scores += bias_E.astype(dtype)[jnp.clip(nth, 0, distances - 1)]
        weights = jnp.where(visible_BCS[:, None], jax.nn.relu(scores), 0) ** power
        return jnp.einsum(
            "bhcs,bshv->bchv", weights.astype(v.dtype), v, preferred_element_type=dtype
        )

    if num_blocks == 1:
        o_BTHV = attend(jnp.zeros((), jnp.int32))
    else:
        o_NBCHV = lax.map(attend, jnp.arange(num_blocks))
        o_BTHV = jnp.moveaxis(o_NBCHV, 0, 1).reshape(B, num_blocks * block, H, -1)[:, :T]
    return o_BTHV.astype(v_BSHV.dtype)


def _pad(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, ((0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)))
