"""Log-linear attention: a state for each power of two of the distance.

Guo et al. 2025 (arXiv:2506.04761), sections 3.1-3.3.  Token t sees the tokens before it in buckets,
one for each bit j of t that is 1, which has 2^j tokens (a Fenwick tree).  With the level l = j + 1
of a bucket, and level 0 for the token itself,

    o_t = sum_l scale_tl S_tl^T q_t,    S_tl = sum over s in bucket l of (a_{s+1} ... a_t) k_s v_s^T

so the level of tokens s < t is one more than the highest bit in which s and t differ.  Time is
O(T log T); the decoding state has one S for each level, and merges levels as t counts up.  Places
count from the start of each packed segment.

Two forms compute the same function:

- `recurrent`: token by token.  The only form for several segments in a row, and for a state that
  has seen tokens already.
- `chunk`: level by level.  The second half of each block of 2^(j+1) tokens attends to the first
  half, by pairs of tokens for short blocks, through the state of the first half for long ones.

A non-finite token affects only outputs from its place on, in its own segment.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.ops import checks, recurrence, segments, sequence_parallel
from linear_transformer.ops.non_finite import finite_tokens, keep, set_nan, stop_non_finite_gradient
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import Keys, Outputs, Queries, SegmentIds, Values

FORMS = ("auto", "recurrent", "chunk")

# Levels, (B, L, H, K, V), and the number of tokens that they hold, (B,).
LogLinearState = tuple[Float[Array, "B L H K V"], Int[Array, " B"]]


def log_linear_attention(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    scales_BTHM: Float[Array, "B T H M"],
    *,
    log_decay_BTH: Float[Array, "B T H"] | None = None,
    initial_state: LogLinearState | None = None,
    segment_ids_BT: SegmentIds | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, LogLinearState]:
    """Computes attention with a weight for each level of the distance.

    Args:
      q_BTHK: queries (not scaled).
      k_BTHK: keys.
      v_BTHV: values.
      scales_BTHM: scale of each of the M levels, from level 0, the token itself.  A segment has at
        most 2^(M - 1) - 1 tokens; the caller must not exceed it.
      log_decay_BTH: log a_t <= 0; None is 0.
      initial_state: the M - 1 levels from level 1, and the number of tokens of each row before
        these tokens, in the segment of the first token; None is no token.
      segment_ids_BT: packed segments; each token sees only its own segment.
      form: "recurrent", "chunk", which ends in an error for several segments or a state that is
        known to hold tokens, or "auto": "chunk" for rows of one segment without tokens before.
      chunk_size: longest blocks of the chunk form that pairs of tokens compute.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the final state in the accumulation dtype.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    checks.choice("form", form, FORMS)
    checks.counts(chunk_size=chunk_size)
    sizes = checks.arrays(
        q_BTHK=q_BTHK,
        k_BTHK=k_BTHK,
        v_BTHV=v_BTHV,
        scales_BTHM=scales_BTHM,
        log_decay_BTH=(log_decay_BTH, "BTH"),
    )
    checks.tokens(sizes, segment_ids_BT=segment_ids_BT)
    checks.at_most_zero("log_decay_BTH", log_decay_BTH)
    batch, time, levels = sizes["B"], sizes["T"] * sequence_parallel.shards(), sizes["M"] - 1
    if levels < 1 or time >= 2**levels:
        raise ValueError(f"scales_BTHM has {levels + 1} levels, too few for {time} tokens")
    dtype = accumulation_dtype(q_BTHK, k_BTHK, v_BTHV)
    shape = (batch, levels, *(sizes[axis] for axis in "HKV"))
    held = count_B = None
    if initial_state is not None:
        if not isinstance(initial_state, tuple) or len(initial_state) != 2:
            raise ValueError("initial_state must be a pair: the levels, and the numbers of tokens")
        held, count_B = initial_state
        levels_of: dict[str, Any] = {"initial_state[0]": (held, "BLHKV")}
        checks.arrays(sizes | {"L": levels}, **levels_of)
        checks.tokens(sizes, **{"initial_state[1]": (count_B, "B")})
    held = recurrence.initial_state(held, shape, dtype)
    count_B = jnp.zeros(batch, jnp.int32) if count_B is None else count_B
    if q_BTHK.size == 0:  # an empty batch, or no tokens
        return jnp.zeros(v_BTHV.shape, v_BTHV.dtype), (held, count_B)
    if log_decay_BTH is None:
        log_decay_BTH = jnp.zeros(q_BTHK.shape[:3], dtype)
    arrays = (q_BTHK, k_BTHK, v_BTHV, scales_BTHM, log_decay_BTH)
    q, k, v, scales, decay = (sequence_parallel.gathered(x.astype(dtype)) for x in arrays)
    # Only keys and values may be NaN: a gradient of 0 times NaN is NaN.
    queries_BT, decays_BT = finite_tokens(q, scales), finite_tokens(decay)
    q, scales, decay = keep(queries_BT, q), keep(queries_BT, scales), keep(decays_BT, decay)
    v = set_nan(~decays_BT, v)
    starts_BT = jnp.zeros(q.shape[:2], bool)
    if segment_ids_BT is not None:
        starts_BT = segments.starts(sequence_parallel.gathered(segment_ids_BT))
    operands = (q, k, v, scales, decay, held, count_B, starts_BT)
    alone = jnp.all(count_B == 0) & ~jnp.any(starts_BT)
    if form == "auto":
        known = initial_state is None and segment_ids_BT is None
        form = "recurrent" if time == 1 else "chunk" if known else "auto"
    elif form == "chunk" and checks.is_known(alone) and not alone:
        raise ValueError("form is 'chunk'; it needs rows of one segment without tokens before")
    # Pairs in blocks of C tokens cost C (K + V) per token, a state costs 4 K V.
    widths = sizes["K"], sizes["V"]
    chunk_size = chunk_size or 4 * math.prod(widths) // sum(widths)
    chunk = functools.partial(_chunk, chunk_size=chunk_size)
    if form == "auto":
        o, state = lax.cond(alone, chunk, _recurrent, *operands)
    else:
        o, state = (chunk if form == "chunk" else _recurrent)(*operands)
    o = stop_non_finite_gradient(set_nan(~queries_BT, o))
    if sequence_parallel.shards() > 1:
        o = sequence_parallel.own(o)
    return o.astype(v_BTHV.dtype), state


def _recurrent(q, k, v, scales, log_decay, held, count, starts):
    bits_L = 2 ** jnp.arange(held.shape[1])  # tokens in the bucket of each level

    def step(carry, token):
        held, count = carry
        q_BHK, k_BHK, v_BHV, scales_BHM, log_decay_BH, start_B = token
        held = jnp.where(start_B[:, None, None, None, None], 0, held)
        count = jnp.where(start_B, 0, count)
        a_BH = jnp.exp(log_decay_BH)
        a = a_BH[:, None, :, None, None]
        held = recurrence.kept(a, held)
        scales_BHL = scales_BHM[..., 1:] * a_BH[..., None]
        o_BHV = jnp.einsum("bhl,blhv->bhv", scales_BHL, jnp.einsum("blhkv,bhk->blhv", held, q_BHK))
        o_BHV += scales_BHM[..., :1] * jnp.sum(q_BHK * k_BHK, axis=-1, keepdims=True) * v_BHV
        # Counting one up clears the lowest bits of the count, as far as they are 1, and sets the
        # next bit, whose level takes over the tokens of the cleared levels.
        carry_bit = ~count & (count + 1)
        place = (slice(None), slice(None), None, None, None)
        cleared = (bits_L < carry_bit[:, None])[place]
        own = (k_BHK[..., :, None] * v_BHV[..., None, :])[:, None]
        merged = own + a * jnp.sum(jnp.where(cleared, held, 0), axis=1, keepdims=True)
        is_next = (bits_L == carry_bit[:, None])[place]
        held = jnp.where(cleared, 0, jnp.where(is_next, merged, a * held))
        return (held, count + 1), o_BHV

    tokens = (q, k, v, scales, log_decay, starts)
    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in tokens)
    state, o_TBHV = lax.scan(step, (held, count), tokens)
    return jnp.moveaxis(o_TBHV, 0, 1), state


def _chunk(q, k, v, scales, log_decay, held, count, starts, *, chunk_size):
    del starts
    time = q.shape[1]
    o = scales[..., :1] * jnp.sum(q * k, axis=-1, keepdims=True) * v
    half, level = 1, 1
    while half < time:
        blocks = -(-time // (2 * half))
        rows = (0, 2 * half * blocks - time)

        def halves(x, blocks=blocks, rows=rows, half=half):
            """Returns the first and second halves of all blocks, (B, N, S, ...) each."""
            x = jnp.pad(x, ((0, 0), rows, *[(0, 0)] * (x.ndim - 2)))
            x = x.reshape(x.shape[0], blocks, 2, half, *x.shape[2:])
            return x[:, :, 0], x[:, :, 1]

        decay_s, decay_t = halves(log_decay)
        until_t = jnp.exp(jnp.cumsum(decay_t, axis=2))  # from the middle to each query
        read = halves(q)[1] * (halves(scales[..., level])[1] * until_t)[..., None]
        after_s = jnp.cumsum(decay_s[:, :, ::-1], axis=2)[:, :, ::-1] - decay_s
        first_k = halves(k)[0] * jnp.exp(after_s)[..., None]
        first_v = halves(v)[0]
        if 2 * half <= chunk_size:
            weights = jnp.einsum("bnthk,bnshk->bnhts", read, first_k)
            added = jnp.einsum("bnhts,bnshv->bnthv", weights, first_v)
        else:
            state = jnp.einsum("bnshk,bnshv->bnhkv", first_k, first_v)
            added = jnp.einsum("bnthk,bnhkv->bnthv", read, state)
        added = jnp.stack([jnp.zeros_like(added), added], axis=2)
        o += added.reshape(o.shape[0], -1, *o.shape[2:])[:, :time]
        half, level = 2 * half, level + 1
    return o, (_levels(k, v, log_decay, held), count + time)


def _levels(k, v, log_decay, held):
    """Returns the buckets after T tokens, for the bits of T that are 1."""
    time, levels = k.shape[1], []
    for bit in range(held.shape[1]):
        if not time >> bit & 1:
            levels.append(jnp.zeros_like(held[:, bit]))
            continue
        start = time >> (bit + 1) << (bit + 1)
        end = start + (1 << bit)
        after = jnp.cumsum(log_decay[:, start:][:, ::-1], axis=1)[:, ::-1] - log_decay[:, start:]
        keys = k[:, start:end] * jnp.exp(after[:, : end - start])[..., None]
        levels.append(jnp.einsum("bshk,bshv->bhkv", keys, v[:, start:end]))
    return jnp.stack(levels, axis=1)
