"""Exact softmax attention: the baseline for every linear attention.

    o_t = sum_s p_ts v_s,   p_ts = exp(a q_t.k_s) / sum_r exp(a q_t.k_r),   a = scale,

with sums over the keys that query t sees.  Forget gates add log f_l of s < l <= t to the score of
query t and key s (`ops.forgetting`).  A sink adds exp(sink) to the sum in the denominator (Agarwal
et al. 2025, arXiv:2508.10925, section 2.2).  Three forms compute the same function:

- `parallel` stores all T x S scores: the reference, and the fastest form for short inputs.
- `blockwise` stores one block of scores: memory linear in T, no work for blocks that causality or
  the window excludes.  The softmax is online (Rabe & Staats 2021, "Self-attention Does Not Need
  O(n^2) Memory"); the backward pass recomputes the scores from the log-sum-exp of each query (Dao
  et al. 2022, "FlashAttention", algorithms 1 and 4).
- `fused` is cuDNN's FlashAttention kernel, on NVIDIA GPUs.

A non-finite key or value makes the outputs of the queries that see it NaN, and changes no other
output and no gradient of another output.  `fused` does not guarantee this.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from linear_transformer.ops import checks, sequence_parallel
from linear_transformer.ops.blocks import weighted_sum
from linear_transformer.ops.blockwise_softmax import (
    Sinks,
    Spec,
    Sums,
    Tags,
    allowed_pairs,
    blockwise,
)
from linear_transformer.ops.forgetting import difference
from linear_transformer.ops.non_finite import contained, finite_tokens, keep, set_nan
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import KeyMask, Outputs, Positions, Queries, SegmentIds

Direction = Literal["causal", "bidirectional"]
Form = Literal["auto", "parallel", "blockwise", "fused"]

# Measured on 2 cores (AVX-512, 1 MiB of L2 each), fp32, K = V = 64: steps over 512 x 512 blocks
# are a third faster than over 256 x 256 (larger matrix products); 1024 only adds work above the
# diagonal.
_BLOCK_SIZE = 512
# A block much larger than the window is mostly masked: 128 is best at 128 and 256, 512 at 1024.
_NARROW_WINDOW, _NARROW_WINDOW_BLOCK_SIZE = 256, 128
# B H T S above which `blockwise` is faster: fresh memory for all scores costs page faults.
_PARALLEL_MAX_SCORES = 2**20


def softmax_attention(
    q_BTHK: Queries,
    k_BSJK: Float[Array, "B S J K"],
    v_BSJV: Float[Array, "B S J V"],
    *,
    direction: str = "causal",
    scale: float | None = None,
    window: int | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_segment_ids_BS: Int[Array, "B S"] | None = None,
    key_mask_BS: KeyMask | None = None,
    query_positions_BT: Positions | None = None,
    key_positions_BS: Int[Array, "B S"] | None = None,
    query_log_sums_BTHX: Float[Array, "B T H X"] | None = None,
    key_log_sums_BSHX: Float[Array, "B S H X"] | None = None,
    sinks_H: Float[Array, " H"] | None = None,
    form: str = "auto",
    block_size: int | None = None,
) -> Outputs:
    """Computes softmax attention exactly.

    Scores, softmax statistics and sums are fp32 (fp64 for fp64 inputs); matrix products have
    operands in the result type of q, k and v.  A query that sees no key gets 0, and all gradients
    through it are 0.

    Args:
      q_BTHK, k_BSJK, v_BSJV: queries, keys, values; V may differ from K.  J divides H: query head h
        attends to head h // (H / J) of the keys and values, which are not copied in memory.
      direction: "causal": a query sees the keys at its own position and before; "bidirectional": it
        sees all keys.
      scale: factor on the scores, positive; K**-0.5 if None.
      window: causal only: a query sees the keys at its own position and the `window - 1` before.
      segment_ids_BT: packed segments, runs of equal ids along T; each query sees only its own
        segment.
      key_segment_ids_BS: for keys from elsewhere: a query sees the keys of equal ids, in any order.
        If an id occurs in several runs, number the runs (`segments.segment_index`).
      key_mask_BS: False drops the key exactly, even if it is NaN.
      query_positions_BT: positions for causality and the window; 0, 1, 2, ... if None.
      key_positions_BS: the same for the keys, in any order, as in a KV cache.  A key at a negative
        position is an empty slot, which no query sees.
      query_log_sums_BTHX, key_log_sums_BSHX: sums of log forget gates from `forgetting.log_sums`;
        the sum of the query minus the sum of the key is added to the scaled score.
      sinks_H: for each head, the scaled score of a further key with value 0, which all queries see.
      form: "parallel", "blockwise", "fused", or "auto": the fastest form that covers the call.
        "blockwise" can be differentiated once, in reverse mode; "parallel" in any mode and order.
      block_size: queries and keys per block of the blockwise form; chosen if None.

    Returns:
      o_BTHV, in the dtype of v.

    Raises:
      ValueError: an argument has a wrong type, shape or value, causal T != S has no positions, or
        the form does not cover this call.
    """
    checks.choice("direction", direction, get_args(Direction))
    checks.choice("form", form, get_args(Form))
    sizes = checks.arrays(q_BTHK=q_BTHK, k_BSJK=k_BSJK, v_BSJV=v_BSJV)
    checks.arrays(
        sizes | {"X": 2},
        query_log_sums_BTHX=(query_log_sums_BTHX, "BTHX"),
        key_log_sums_BSHX=(key_log_sums_BSHX, "BSHX"),
        sinks_H=(sinks_H, "H"),
    )
    checks.tokens(
        sizes,
        segment_ids_BT=segment_ids_BT,
        key_segment_ids_BS=key_segment_ids_BS,
        key_mask_BS=key_mask_BS,
        query_positions_BT=query_positions_BT,
        key_positions_BS=key_positions_BS,
    )
    B, T, H, J, K, S = (sizes[axis] for axis in "BTHJKS")
    checks.counts(window=window, block_size=block_size)
    checks.positive(scale=scale)
    causal = direction == "causal"
    ordered = query_positions_BT is None and key_positions_BS is None
    scale = float(K**-0.5 if scale is None else scale)
    gated = query_log_sums_BTHX is not None
    packed, keys_packed = segment_ids_BT is not None, key_segment_ids_BS is not None
    for wrong, message in (
        (window is not None and not causal, f"{window=} with {direction=}"),
        (J < 1 or H % J, f"k_BSJK has {J} heads, which do not divide the {H} of q_BTHK"),
        (gated != (key_log_sums_BSHX is not None), "log sums of only queries or only keys"),
        (causal and ordered and T != S, f"causal with {T=} != {S=} needs positions"),
        (keys_packed and not packed, "segment_ids_BT is missing"),
        (packed and not keys_packed and T != S, f"key_segment_ids_BS is missing, {T=} != {S=}"),
    ):
        if wrong:
            raise ValueError(f"softmax_attention: {message}.")
    if 0 in (B, T, S):  # an empty batch, no queries, or no keys
        return jnp.zeros((B, T, H, v_BSJV.shape[3]), v_BSJV.dtype)
    if segment_ids_BT is not None and not keys_packed:
        segment_ids_BT = key_segment_ids_BS = sequence_parallel.segment_index(segment_ids_BT)
    if sequence_parallel.shards() > 1 and query_positions_BT is None:
        ordered = False
        queries_T = sequence_parallel.places(T)
        keys = (k_BSJK, v_BSJV, key_segment_ids_BS, key_mask_BS, key_log_sums_BSHX)
        keys, keys_S = sequence_parallel.keys_in_reach(keys, window)
        k_BSJK, v_BSJV, key_segment_ids_BS, key_mask_BS, key_log_sums_BSHX = keys
        S = len(keys_S)
        query_positions_BT, key_positions_BS = (
            jnp.tile(places, (B, 1)) for places in (queries_T, keys_S)
        )

    # Tags decide which keys a query sees: positions, then segments if any; no query sees key -1.
    if query_positions_BT is None:
        query_positions_BT = jnp.tile(jnp.arange(T), (B, 1))
    if key_positions_BS is None:
        key_positions_BS = jnp.tile(jnp.arange(S), (B, 1))
    if key_mask_BS is not None:
        key_positions_BS = jnp.where(key_mask_BS, key_positions_BS, -1)
    pairs = [(query_positions_BT, key_positions_BS), (segment_ids_BT, key_segment_ids_BS)]
    pairs = pairs if segment_ids_BT is not None else pairs[:1]
    tags = Tags(*(tuple(x[..., None, None] for x in xs) for xs in zip(*pairs, strict=True)))
    masked = not ordered or segment_ids_BT is not None or key_mask_BS is not None
    narrow = window is not None and window <= _NARROW_WINDOW
    block_size = block_size or (_NARROW_WINDOW_BLOCK_SIZE if narrow else _BLOCK_SIZE)
    spec = Spec(causal, window, scale, ordered, masked, block_size)

    covered = _fused_covers(q_BTHK, k_BSJK, v_BSJV, masked or gated or sinks_H is not None)
    if form == "auto":
        short = B * H * T * S <= _PARALLEL_MAX_SCORES or T == 1  # Decoding is linear anyway.
        form = "fused" if covered else "parallel" if short else "blockwise"
    dtype = jnp.result_type(q_BTHK, k_BSJK, v_BSJV)
    q, k, v = (x.astype(dtype) for x in (q_BTHK, k_BSJK, v_BSJV))
    sums = None
    if query_log_sums_BTHX is not None and key_log_sums_BSHX is not None:
        finite_BT, finite_BS = finite_tokens(query_log_sums_BTHX), finite_tokens(key_log_sums_BSHX)
        q, k = set_nan(~finite_BT, q), set_nan(~finite_BS, k)
        sums = keep(finite_BT, query_log_sums_BTHX), keep(finite_BS, key_log_sums_BSHX)
    sinks = None if sinks_H is None else sinks_H[None, None, :, None]
    if form == "parallel":
        return _parallel_by_group(q, k, v, sums, sinks, tags, spec).astype(v_BSJV.dtype)
    if form == "blockwise":
        return blockwise(q, k, v, sums, sinks, tags, spec).astype(v_BSJV.dtype)
    if not covered:
        needs = "a GPU, 16-bit floats, K == V <= 128, no positions, segments, mask, gates or sinks"
        raise ValueError(f"softmax_attention: form='fused' needs {needs}.")
    behind_and_ahead = None if window is None else (window - 1, 0)
    options = {"scale": scale, "is_causal": causal, "local_window_size": behind_and_ahead}
    return jax.nn.dot_product_attention(q_BTHK, k_BSJK, v_BSJV, implementation="cudnn", **options)


def _fused_covers(q: Array, k: Array, v: Array, masked: bool) -> bool:
    dtypes, K, V = {x.dtype.name for x in (q, k, v)}, q.shape[3], v.shape[3]
    fits = dtypes in ({"bfloat16"}, {"float16"}) and K == V and K % 8 == 0 and K <= 128
    return fits and not masked and jax.default_backend() == "gpu"


def _parallel_by_group(
    q_BTHK: Array, k_BSJK: Array, v_BSJV: Array, sums: Sums, sinks: Sinks, tags: Tags, spec: Spec
) -> Array:
    """Maps `_parallel` over the query heads that share a head of the keys."""
    (B, T, H, _), J = q_BTHK.shape, k_BSJK.shape[2]
    if H == J:
        return _parallel(q_BTHK, k_BSJK, v_BSJV, sums, sinks, tags, spec)

    def of_member(q_BTJK: Array, sums: Sums, sinks: Sinks) -> Array:
        return _parallel(q_BTJK, k_BSJK, v_BSJV, sums, sinks, tags, spec)

    members = (q_BTHK, sums, sinks)
    members = jax.tree.map(lambda x: x.reshape(*x.shape[:2], J, H // J, -1), members)
    return jax.vmap(of_member, 3, 3)(*members).reshape(B, T, H, -1)


def _parallel(
    q_BTHK: Array, k_BSHK: Array, v_BSHV: Array, sums: Sums, sinks: Sinks, tags: Tags, spec: Spec
) -> Array:
    dtype = accumulation_dtype(q_BTHK, k_BSHK, v_BSHV)
    einsum = functools.partial(jnp.einsum, preferred_element_type=dtype)
    allowed_BxST = visible_BTS = None
    if spec.causal or spec.masked:
        queries = tuple(x.transpose(0, 2, 3, 1) for x in tags.queries)
        allowed_BxST = allowed_pairs(
            Tags(queries, tuple(x.swapaxes(1, 2) for x in tags.keys)), spec
        )
        visible_BTS = allowed_BxST[:, 0].swapaxes(1, 2)
    q_BTHK, k_BSHK, v_BSHV, affected_BT = contained(q_BTHK, k_BSHK, v_BSHV, visible_BTS)
    scores_BHST = einsum("bshk,bthk->bhst", k_BSHK, q_BTHK) * spec.scale
    if sums is not None:
        queries, keys = (jnp.moveaxis(x, (3, 2), (0, 2)) for x in sums)  # high and low, (B, H, T)
        by_query, by_key = tuple(queries[:, :, :, None]), tuple(keys[..., None])
        scores_BHST = scores_BHST + difference(by_query, by_key)
    if allowed_BxST is not None:
        scores_BHST = jnp.where(allowed_BxST, scores_BHST, -jnp.inf)
    # The shift cancels in the quotient, so no gradient flows through it.  The shift is finite even
    # if every score is -inf: such queries compute exp(-inf) = 0, not exp(nan).
    floor = jnp.finfo(dtype).min
    shift_BHxT = jnp.max(scores_BHST, 2, keepdims=True, initial=floor)
    if sinks is not None:
        sinks = sinks.swapaxes(1, 2).astype(dtype)  # (1, H, 1, 1)
        shift_BHxT = jnp.maximum(shift_BHxT, sinks)
    shift_BHxT = lax.stop_gradient(shift_BHxT)
    weights_BHST = jnp.exp(scores_BHST - shift_BHxT)
    sum_BHT = jnp.sum(weights_BHST, 2)
    if sinks is not None:
        sum_BHT += jnp.exp(sinks - shift_BHxT)[:, :, 0]
    sum_BTHx = jnp.where(sum_BHT > 0, sum_BHT, 1).swapaxes(1, 2)[..., None]
    weights_BHST = weights_BHST.astype(v_BSHV.dtype)
    if q_BTHK.shape[1] == 1:
        o_BTHV = weighted_sum(weights_BHST.mT, v_BSHV, dtype)
    else:
        o_BTHV = einsum("bhst,bshv->bthv", weights_BHST, v_BSHV)
    return set_nan(affected_BT, o_BTHV / sum_BTHx).astype(v_BSHV.dtype)
