"""Exact softmax attention: the baseline that every linear attention has to beat.

    o_t = sum_s p_ts v_s,   p_ts = exp(a q_t.k_s) / sum_r exp(a q_t.k_r),   a = scale,

with sums over the keys that query t is allowed to see.  Three forms of one function:

- `parallel` writes out the T x S scores: the oracle, and the fastest form for short inputs.
- `blockwise` never holds more than one block of scores: memory linear in T, and no work at all for
  blocks that the causal mask or the window rules out.  The softmax over blocks is online (Rabe &
  Staats 2021, "Self-attention Does Not Need O(n^2) Memory"); the backward pass recomputes the
  scores from the log-sum-exp of each query (Dao et al. 2022, "FlashAttention", algorithms 1, 4).
- `fused` is cuDNN's FlashAttention kernel, on NVIDIA GPUs.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int

from linear_transformer.types import KeyMask, Keys, Outputs, Positions, Queries, SegmentIds, Values

Direction = Literal["causal", "bidirectional"]
Form = Literal["auto", "parallel", "blockwise", "fused"]

# PLACEHOLDER
_BLOCK_SIZE = 256
_PARALLEL_MAX_SCORES = 256 * 256
_CPU_SCORES_PER_STEP = 8 * 256 * 256


class _Mask(NamedTuple):
    """Who may see whom.  A key at position -1 does not exist: empty, masked or padding."""

    query_positions_BT: Array
    key_positions_BS: Array
    query_segments_BT: Array | None
    key_segments_BS: Array | None


class _Spec(NamedTuple):
    """What is static about one call; hashable, since jit and custom_vjp key on it."""

    causal: bool
    window: int | None
    scale: float
    ordered: bool  # Positions are 0, 1, 2, ...: block pairs can be ruled out before tracing.
    masked: bool  # Segments or missing keys: even blocks below the diagonal need the mask.
    block_size: int


def softmax_attention(
    q_BTHK: Queries,
    k_BSHK: Keys,
    v_BSHV: Values,
    *,
    direction: Direction = "causal",
    scale: float | None = None,
    window: int | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_segment_ids_BS: Int[Array, "B S"] | None = None,
    key_mask_BS: KeyMask | None = None,
    query_positions_BT: Positions | None = None,
    key_positions_BS: Int[Array, "B S"] | None = None,
    form: Form = "auto",
    block_size: int | None = None,
) -> Outputs:
    """Softmax attention, computed exactly.

    Scores, softmax statistics and sums are fp32 (fp64 for fp64 inputs); the matrix products read
    their operands in the dtype of the inputs.  A query that may see no key at all gets 0, and all
    gradients through it are 0.

    Args:
      q_BTHK: queries.
      k_BSHK: keys.
      v_BSHV: values; V may differ from K.
      direction: "causal": a query sees the keys at its own position and before.
        "bidirectional": it sees them all.
      scale: factor on the scores; K**-0.5 if None.
      window: a query sees the keys at its own position and at the `window - 1` before it.
        Causal only.
      segment_ids_BT: queries and keys of different segments never meet.
      key_segment_ids_BS: segments of the keys; `segment_ids_BT` if None.
      key_mask_BS: False drops the key exactly.
      query_positions_BT: integer positions that causality and the window refer to; 0, 1, 2, ... if
        None.
      key_positions_BS: the same for the keys, in any order, as in a KV cache.  A key at a negative
        position is an empty slot, and is never seen.
      form: "parallel", "blockwise", "fused", or "auto": the fastest that covers the call.
        "blockwise" can be differentiated once, in reverse mode; "parallel" in any mode and order.
      block_size: queries and keys in a block of the blockwise form; chosen if None.

    Returns:
      o_BTHV, in the dtype of v.

    Raises:
      ValueError: shapes that do not fit, a window below 1 or without causality, causal T != S
        without positions, or a form that is unknown or cannot compute this call here.
    """
    B, T, H, K = q_BTHK.shape
    S = k_BSHK.shape[1]
    if k_BSHK.shape != (B, S, H, K) or v_BSHV.shape[:3] != (B, S, H):
        raise ValueError(
            f"q {q_BTHK.shape}, k {k_BSHK.shape}, v {v_BSHV.shape} are not BTHK, BSHK, BSHV."
        )
    if direction not in ("causal", "bidirectional"):
        raise ValueError(f"direction={direction!r}; want 'causal' or 'bidirectional'.")
    causal = direction == "causal"
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window={window}, direction={direction!r}; want window >= 1 and causal.")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size={block_size}; want at least 1.")
    ordered = query_positions_BT is None and key_positions_BS is None
    if causal and ordered and T != S:
        raise ValueError(f"Causal attention of T={T} queries to S={S} keys needs positions.")
    if key_segment_ids_BS is None:
        key_segment_ids_BS = segment_ids_BT
    elif segment_ids_BT is None:
        raise ValueError("key_segment_ids_BS is given without segment_ids_BT.")
    for name, array, shape in (
        ("segment_ids_BT", segment_ids_BT, (B, T)),
        ("key_segment_ids_BS", key_segment_ids_BS, (B, S)),
        ("key_mask_BS", key_mask_BS, (B, S)),
        ("query_positions_BT", query_positions_BT, (B, T)),
        ("key_positions_BS", key_positions_BS, (B, S)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; want {shape}.")

    if query_positions_BT is None:
        query_positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    if key_positions_BS is None:
        key_positions_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    if key_mask_BS is not None:
        key_positions_BS = jnp.where(key_mask_BS, key_positions_BS, -1)
    mask = _Mask(query_positions_BT, key_positions_BS, segment_ids_BT, key_segment_ids_BS)
    masked = not ordered or segment_ids_BT is not None or key_mask_BS is not None
    scale = K**-0.5 if scale is None else scale
    spec = _Spec(causal, window, scale, ordered, masked, block_size or _default_block(window))

    why_not_fused = _why_not_fused(q_BTHK, k_BSHK, v_BSHV, masked)
    if form == "auto":
        if why_not_fused is None:
            form = "fused"
        elif T * S <= _PARALLEL_MAX_SCORES or T == 1:
            form = "parallel"
        else:
            form = "blockwise"
    if form == "parallel":
        return _parallel(q_BTHK, k_BSHK, v_BSHV, mask, spec)
    if form == "blockwise":
        return _blockwise(q_BTHK, k_BSHK, v_BSHV, mask, spec)
    if form != "fused":
        raise ValueError(f"form={form!r}; want 'auto', 'parallel', 'blockwise' or 'fused'.")
    if why_not_fused is not None:
        raise ValueError(f"form='fused' does not cover this call: {why_not_fused}.")
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSHK,
        v_BSHV,
        scale=scale,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def _why_not_fused(q_BTHK: Array, k_BSHK: Array, v_BSHV: Array, masked: bool) -> str | None:
    if jax.default_backend() != "gpu":
        return f"it needs a GPU, and the backend is {jax.default_backend()}"
    if masked:
        return "it takes no positions, segments or key mask"
    if {q_BTHK.dtype, k_BSHK.dtype, v_BSHV.dtype} not in ({jnp.bfloat16}, {jnp.float16}):
        return "it needs q, k, v all bfloat16 or all float16"
    K = q_BTHK.shape[-1]
    if v_BSHV.shape[-1] != K or K % 8 or K > 128:
        return "it needs K == V, a multiple of 8, at most 128"
    return None


def _accumulator_dtype(*arrays: Array) -> Any:
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _allowed(mask: _Mask, spec: _Spec) -> Array:
    """Which key each query sees, [B, 1, S, T] (the 1 is for the heads)."""
    query_positions_BxT = mask.query_positions_BT[:, None, None, :]
    key_positions_BxSx = mask.key_positions_BS[:, None, :, None]
    allowed_BxST = key_positions_BxSx >= 0
    if spec.causal:
        allowed_BxST &= key_positions_BxSx <= query_positions_BxT
    if spec.window is not None:
        allowed_BxST &= key_positions_BxSx > query_positions_BxT - spec.window
    if mask.query_segments_BT is not None:
        allowed_BxST &= (
            mask.key_segments_BS[:, None, :, None] == mask.query_segments_BT[:, None, None, :]
        )
    return allowed_BxST


def _parallel(q_BTHK: Array, k_BSHK: Array, v_BSHV: Array, mask: _Mask, spec: _Spec) -> Array:
    dtype = _accumulator_dtype(q_BTHK, k_BSHK, v_BSHV)
    einsum = functools.partial(jnp.einsum, preferred_element_type=dtype)
    scores_BHST = einsum("bshk,bthk->bhst", k_BSHK, q_BTHK) * spec.scale
    if spec.causal or spec.masked:
        scores_BHST = jnp.where(_allowed(mask, spec), scores_BHST, -jnp.inf)
    # The shift cancels in the quotient, so no gradient flows through it.  It is finite even where
    # every score is -inf, which makes those rows exp(-inf) = 0 rather than exp(nan).
    floor = jnp.finfo(dtype).min
    shift_BHxT = lax.stop_gradient(jnp.max(scores_BHST, 2, keepdims=True, initial=floor))
    weights_BHST = jnp.exp(scores_BHST - shift_BHxT)
    sum_BHT = jnp.sum(weights_BHST, 2)
    sum_BTHx = jnp.where(sum_BHT > 0, sum_BHT, 1).swapaxes(1, 2)[..., None]
    o_BTHV = einsum("bhst,bshv->bthv", weights_BHST.astype(v_BSHV.dtype), v_BSHV)
    return (o_BTHV / sum_BTHx).astype(v_BSHV.dtype)


# --- The blockwise form -------------------------------------------------------------------------
#
# Arrays are cut into blocks once, before the loop: [N, B, H, ...] with N the block, so that a block
# is contiguous.  C is the queries in a block, D the keys.  Scores are kept transposed, keys first
# (DC): then every product below is a plain row-major matrix product, maxima and sums over keys run
# down the columns, and the statistics of a query broadcast along rows.  All of this vectorises.


def _default_block(window: int | None) -> int:
    return _BLOCK_SIZE


def _even_block(length: int, block_size: int) -> tuple[int, int]:
    """Number and size of blocks: as few as `block_size` allows, and then no larger than needed."""
    num_blocks = -(-length // block_size)
    size = -(-length // num_blocks)
    return num_blocks, min(block_size, -(-size // 16) * 16)


def _pairs(T: int, S: int, spec: _Spec) -> tuple[np.ndarray, np.ndarray]:
    """(query block, key block) pairs to compute, [P, 2]: those without a mask, those with one."""
    num_q, C = _even_block(T, spec.block_size)
    num_k, D = _even_block(S, spec.block_size)
    i, j = (x.reshape(-1) for x in np.meshgrid(np.arange(num_q), np.arange(num_k), indexing="ij"))
    first_q, last_q, first_k, last_k = i * C, (i + 1) * C - 1, j * D, (j + 1) * D - 1
    needed = np.ones(i.shape, bool)
    unmasked = np.full(i.shape, not spec.masked) & (last_k < S)
    if spec.causal and spec.ordered:
        needed &= first_k <= last_q
        unmasked &= last_k <= first_q
        if spec.window is not None:
            needed &= last_k > first_q - spec.window
            unmasked &= first_k > last_q - spec.window
    pairs = np.stack([i, j], 1).astype(np.int32)
    return pairs[needed & unmasked], pairs[needed & ~unmasked]


def _cut(x_BTHX: Array, num_blocks: int, size: int, transpose: bool) -> Array:
    """[B, T, H, X] to zero-padded blocks [N, B, H, size, X], or [N, B, H, X, size]."""
    B, T, H, X = x_BTHX.shape
    x = jnp.pad(x_BTHX, ((0, 0), (0, num_blocks * size - T), (0, 0), (0, 0)))
    x = x.reshape(B, num_blocks, size, H, X)
    return x.transpose((1, 0, 3, 4, 2) if transpose else (1, 0, 3, 2, 4))


def _join(x_NBHCX: Array, length: int) -> Array:
    N, B, H, C, X = x_NBHCX.shape
    return x_NBHCX.transpose(1, 0, 3, 2, 4).reshape(B, N * C, H, X)[:, :length]


def _cut_mask(mask: _Mask, query_blocks: tuple[int, int], key_blocks: tuple[int, int]) -> _Mask:
    def cut(x_BT, num_blocks, size, fill=0):
        if x_BT is None:
            return None
        B, T = x_BT.shape
        x_BT = jnp.pad(x_BT, ((0, 0), (0, num_blocks * size - T)), constant_values=fill)
        return x_BT.reshape(B, num_blocks, size).swapaxes(0, 1)

    return _Mask(
        cut(mask.query_positions_BT, *query_blocks),
        cut(mask.key_positions_BS, *key_blocks, fill=-1),
        cut(mask.query_segments_BT, *query_blocks),
        cut(mask.key_segments_BS, *key_blocks),
    )


def _matmul(a: Array, b: Array, dtype: Any) -> Array:
    """[b, h, m, n] @ [b, h, n, p]."""
    return lax.dot_general(a, b, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=dtype)


def _read(x: Array, index: tuple[Any, ...], group: tuple[int, int]) -> Array:
    """Block `index[0]` of a group of heads: [N, B, H, ...] to [b, h, ...]; [N, B, C] to [b, C]."""
    lead = 3 if x.ndim > 3 else 2
    sizes = (1, *group)[:lead] + x.shape[lead:]
    return lax.dynamic_slice(x, index[:lead] + (0,) * (x.ndim - lead), sizes)[0]


def _write(x: Array, index: tuple[Any, ...], update: Array) -> Array:
    return lax.dynamic_update_slice(x, update[None], (*index, *(0,) * (x.ndim - 3)))


def _for_each_pair(step, carry, pairs, B, H, group, spec, mask):
    """Folds `step(carry, query index, key index, allowed or None)` over groups of heads, pairs."""
    b, h = group
    for table, has_mask in zip(pairs, (False, True), strict=True):
        if not len(table):
            continue

        def body(n, carry, table=table, has_mask=has_mask):
            g, p = n // len(table), n % len(table)
            i, j = jnp.asarray(table)[p]
            at = (g // (H // h) * b, g % (H // h) * h)
            allowed = None
            if has_mask:
                at_q, at_k = (i, *at), (j, *at)
                tile = _Mask(
                    *(
                        x if x is None else _read(x, index, group)
                        for x, index in zip(mask, (at_q, at_k, at_q, at_k), strict=True)
                    )
                )
                allowed = jnp.where(_allowed(tile, spec), 0, -jnp.inf).astype(carry[0].dtype)
            return step(carry, (i, *at), (j, *at), allowed)

        carry = lax.fori_loop(0, len(table) * (B // b) * (H // h), body, carry)
    return carry


def _forward_blocks(q, k, v, mask, *, spec, T, S, cpu):
    """o_BTHV, lse_NBHxC from whole arrays."""
    dtype = _accumulator_dtype(q, k, v)
    B, _, H, _ = q.shape
    V = v.shape[-1]
    query_blocks, key_blocks = _even_block(T, spec.block_size), _even_block(S, spec.block_size)
    (num_q, C), (_, D) = query_blocks, key_blocks
    group = _group(B, H, C * D, cpu)
    qT_NBHKC = _cut(q, *query_blocks, transpose=True)
    k_NBHDK = _cut(k, *key_blocks, transpose=False)
    vT_NBHVD = _cut(v, *key_blocks, transpose=True)
    mask = _cut_mask(mask, query_blocks, key_blocks)
    floor = jnp.finfo(dtype).min

    def step(carry, at_q, at_k, allowed):
        oT, statistics = (_read(x, at_q, group) for x in carry)
        shift, total = statistics[..., :1, :], statistics[..., 1:, :]
        scores = _matmul(_read(k_NBHDK, at_k, group), _read(qT_NBHKC, at_q, group), dtype)
        if allowed is not None:
            scores = scores + allowed
        new_shift = jnp.maximum(shift, jnp.max(scores, 2, keepdims=True))
        weights = jnp.exp((scores - new_shift) * spec.scale)
        decay = jnp.exp((shift - new_shift) * spec.scale)
        total = total * decay + jnp.sum(weights, 2, keepdims=True)
        oT = oT * decay + _matmul(_read(vT_NBHVD, at_k, group), weights.astype(v.dtype), dtype)
        statistics = jnp.concatenate([new_shift, total], 2)
        return _write(carry[0], at_q, oT), _write(carry[1], at_q, statistics)

    statistics = jnp.broadcast_to(jnp.array([[floor], [0]], dtype), (num_q, B, H, 2, C))
    carry = (jnp.zeros((num_q, B, H, V, C), dtype), statistics)
    pairs = _pairs(T, S, spec)
    oT, statistics = _for_each_pair(step, carry, pairs, B, H, group, spec, mask)
    shift, total = statistics[..., :1, :], statistics[..., 1:, :]
    empty = total == 0
    # With lse = inf the backward pass recomputes weights of exp(-inf) = 0 for an empty row.
    lse = jnp.where(empty, jnp.inf, shift * spec.scale + jnp.log(jnp.where(empty, 1, total)))
    oT = (oT / jnp.where(empty, 1, total)).astype(v.dtype)
    return _join(oT.swapaxes(3, 4), T), lse


def _backward_blocks(q, k, v, mask, o, lse_NBHxC, do, *, spec, T, S, cpu):
    dtype = _accumulator_dtype(q, k, v)
    B, _, H, K = q.shape
    V = v.shape[-1]
    query_blocks, key_blocks = _even_block(T, spec.block_size), _even_block(S, spec.block_size)
    (num_q, C), (num_k, D) = query_blocks, key_blocks
    group = _group(B, H, C * D, cpu)
    delta = jnp.sum(o.astype(dtype) * do.astype(dtype), 3, keepdims=True)
    delta_NBHxC = _cut(delta, *query_blocks, transpose=True)
    qT_NBHKC = _cut(q, *query_blocks, transpose=True)
    doT_NBHVC = _cut(do, *query_blocks, transpose=True)
    k_NBHDK = _cut(k, *key_blocks, transpose=False)
    v_NBHDV = _cut(v, *key_blocks, transpose=False)
    mask = _cut_mask(mask, query_blocks, key_blocks)

    def step(carry, at_q, at_k, allowed):
        dqT, dk, dv = carry
        qT, doT = _read(qT_NBHKC, at_q, group), _read(doT_NBHVC, at_q, group)
        k_, v_ = _read(k_NBHDK, at_k, group), _read(v_NBHDV, at_k, group)
        scores = _matmul(k_, qT, dtype) * spec.scale
        if allowed is not None:
            scores = scores + allowed
        weights = jnp.exp(scores - _read(lse_NBHxC, at_q, group))
        dweights = _matmul(v_, doT, dtype)
        dscores = weights * (dweights - _read(delta_NBHxC, at_q, group)) * spec.scale
        dscores = dscores.astype(q.dtype)
        dv_ = _read(dv, at_k, group) + _matmul(weights.astype(do.dtype), doT.swapaxes(2, 3), dtype)
        dk_ = _read(dk, at_k, group) + _matmul(dscores, qT.swapaxes(2, 3), dtype)
        dqT_ = _read(dqT, at_q, group) + _matmul(k_.swapaxes(2, 3), dscores, dtype)
        return _write(dqT, at_q, dqT_), _write(dk, at_k, dk_), _write(dv, at_k, dv_)

    carry = (
        jnp.zeros((num_q, B, H, K, C), dtype),
        jnp.zeros((num_k, B, H, D, K), dtype),
        jnp.zeros((num_k, B, H, D, V), dtype),
    )
    pairs = _pairs(T, S, spec)
    dqT, dk, dv = _for_each_pair(step, carry, pairs, B, H, group, spec, mask)
    return (
        _join(dqT.swapaxes(3, 4), T).astype(q.dtype),
        _join(dk, S).astype(k.dtype),
        _join(dv, S).astype(v.dtype),
    )


def _group(B, H, scores, cpu):
    if not cpu:
        return B, H
    h = max(1, _CPU_SCORES_PER_STEP // scores)
    return 1, max(d for d in range(1, H + 1) if H % d == 0 and d <= h)


def _by_platform(function, *args, **kwargs):
    return lax.platform_dependent(
        *args,
        cpu=functools.partial(function, cpu=True, **kwargs),
        default=functools.partial(function, cpu=False, **kwargs),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(q, k, v, mask, spec):
    return _blockwise_fwd(q, k, v, mask, spec)[0]


def _blockwise_fwd(q, k, v, mask, spec):
    o, lse = _by_platform(_forward_blocks, q, k, v, mask, spec=spec, T=q.shape[1], S=k.shape[1])
    return o, (q, k, v, mask, o, lse)


def _blockwise_bwd(spec, residuals, do):
    q, k = residuals[:2]
    dq, dk, dv = _by_platform(
        _backward_blocks, *residuals, do, spec=spec, T=q.shape[1], S=k.shape[1]
    )
    return dq, dk, dv, None


_blockwise.defvjp(_blockwise_fwd, _blockwise_bwd)
