"""Linear attention with decay: the gated recurrence, with a scalar or a vector gate per head.

    S_t = a_t S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t,    a_t = exp(log_decay_t) <= 1

A fixed scalar per head is retention (Sun et al., 2023, arXiv:2307.08621, equations 5-7), a scalar
that depends on the token is the gate of Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060, section 6), a
vector over the key features that of gated linear attention (Yang et al., 2023, arXiv:2312.06635,
equations 3-5).  To normalise the weights, append a column of ones to the values and divide by it.

A token that is not finite spoils no earlier output and no other document: exactly so in the token
scan and the associative form, and outside of its own chunk in the chunk forms; `parallel` is one
chunk.  The same holds for the gradient of what it did not spoil.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import checks, recurrence, segments, sequence_parallel
from linear_transformer.ops.decay_chunk import chunk_form
from linear_transformer.ops.non_finite import keep, opaque
from linear_transformer.ops.pallas.choice import believed_to_win
from linear_transformer.ops.pallas.decay import pallas_form
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import (
    KeyMask,
    Keys,
    Outputs,
    Queries,
    SegmentIds,
    State,
    Values,
)

DIRECTIONS = ("causal", "anticausal", "bidirectional")


def decayed_attention(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    log_decay: Float[Array, " H"] | Float[Array, "B T H"] | Float[Array, "B T H K"],
    *,
    direction: str = "causal",
    bonus_HK: Float[Array, "H K"] | None = None,
    initial_state: State | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_mask_BS: KeyMask | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, State]:
    """Attention with weights q_i^T (a_{j+1} ... a_i k_j), in time and memory linear in T.

    Args:
      q_BTHK: queries (not scaled).
      k_BTHK: keys.
      v_BTHV: values.
      log_decay: log a_t <= 0: (H,), fixed per head; (B, T, H), a scalar per token; or (B, T, H, K),
        a vector over the key features.  -inf forgets everything before the token.
      direction: "causal" (keys up to the query), "anticausal" (keys from the query on; then
        S_t = a_t S_{t+1} + k_t v_t^T), or "bidirectional": both, the token's own key once (Afzal
        et al., 2025, arXiv:2502.16249).
      bonus_HK: the token's own key has this weight and what came before is not decayed by its gate,
        o_t = (S_{t-1} + diag(bonus) k_t v_t^T)^T q_t (RWKV-6; Peng et al., 2024, arXiv:2404.05892);
        causal only.
      initial_state: (B, H, K, V), what came before the first token (after the last one if
        anticausal) in the same segment; zeros if None.
      segment_ids_BT: packed documents; each token sees its own segment only.
      key_mask_BS: False drops a key exactly; the decay at its place still acts.
      form: "recurrent", "parallel" (with a vector gate, O(T^2 K) memory), "associative", "chunk",
        "pallas" (the chunk form as a TPU kernel), or "auto": one call of "recurrent" for T = 1,
        else "chunk", or for scalars "pallas" where `ops.pallas.choice` believes it to win.
      chunk_size: tokens per chunk of the chunk form; of the kernel, and with a vector gate, the
        next power of two.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the final state (of the causal part if
      bidirectional) in the accumulation dtype.

    Raises:
      ValueError: an argument is of a wrong type, shape or value.
    """
    checks.choice("direction", direction, DIRECTIONS)
    checks.choice("form", form, recurrence.FORMS)
    checks.chunk_size(chunk_size)
    sizes = checks.arrays(
        q_BTHK=q_BTHK,
        k_BTHK=k_BTHK,
        v_BTHV=v_BTHV,
        bonus_HK=bonus_HK,
        initial_state=(initial_state, "BHKV"),
    )
    checks.segment_ids(segment_ids_BT, sizes)
    checks.log_decay(log_decay, sizes)
    if bonus_HK is not None and direction != "causal":
        raise ValueError(f"direction is {direction!r}; a bonus needs causal")
    dtype = accumulation_dtype(q_BTHK, k_BTHK, v_BTHV)
    if key_mask_BS is not None:
        k_BTHK, v_BTHV = keep(key_mask_BS, k_BTHK), keep(key_mask_BS, v_BTHV)
    state = recurrence.initial_state(initial_state, tuple(sizes[x] for x in "BHKV"), dtype)
    if q_BTHK.size == 0:  # no rows, or no tokens
        return jnp.zeros(v_BTHV.shape, v_BTHV.dtype), state
    arrays = (q_BTHK, k_BTHK, v_BTHV, recurrence.per_token(log_decay, q_BTHK))
    options = {"form": form, "chunk_size": chunk_size}
    attend = functools.partial(_sharded, **options)
    if bonus_HK is not None:
        local = functools.partial(_causal, **options)
        o, state = _with_bonus(local, *arrays, bonus_HK.astype(dtype), state, segment_ids_BT)
    elif direction == "causal":
        o, state = attend(*arrays, state, segment_ids_BT)
    elif direction == "anticausal":
        o, state = recurrence.backwards(attend, *arrays, state, segment_ids_BT)
    else:
        o, state = attend(*arrays, state, segment_ids_BT)
        start = (jnp.zeros_like(state), segment_ids_BT)
        later, _ = recurrence.backwards(attend, *arrays, *start)
        o = o + later - _own(q_BTHK, k_BTHK, v_BTHV, dtype)
    if bonus_HK is not None or direction == "bidirectional":  # the token's own term is added
        o = opaque(o)
    return o.astype(v_BTHV.dtype), state


def _own(q, k, v, dtype):
    """What a token reads from its own key."""
    return jnp.sum(q.astype(dtype) * k, axis=-1, keepdims=True) * v


def _with_bonus(attend, q, k, v, log_decay, bonus, state, segment_ids_BT):
    """S_t is read by the query of token t + 1, the initial state by the first one.

    So what a chunk form spreads inside of its own chunk reaches the token after the chunk too.
    """
    # In the chunk of the token before, a query that is not finite would spoil what comes before it.
    is_finite = jnp.all(jnp.isfinite(q), axis=-1, keepdims=True)
    q_read, starts = jnp.where(is_finite, q, 0), None
    if segment_ids_BT is not None:
        starts = segments.starts(segment_ids_BT)[..., None, None]
        q_read = jnp.where(starts, 0, q_read)
    q_next = jnp.pad(q_read[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    state = _entering(jnp.result_type(q, k, v), k, v, log_decay, state, segment_ids_BT)
    first = jnp.einsum("bhk,bhkv->bhv", q_read[:, 0].astype(state.dtype), state)
    o, final = attend(q_next, k, v, log_decay, state, segment_ids_BT)
    o = jnp.concatenate([first[:, None], o[:, :-1]], axis=1)
    if starts is not None:
        o = jnp.where(starts, 0, o)
    # The own term of a query that is not finite is NaN.
    return o + _own(q * bonus, k, v, state.dtype), sequence_parallel.of_last(final)


def _sharded(q, k, v, log_decay, state, segment_ids_BT, *, reverse=False, **options):
    """`_causal` on a shard of a sequence, or on all of it."""
    narrow = jnp.result_type(q, k, v)
    state = _entering(narrow, k, v, log_decay, state, segment_ids_BT, reverse)
    o, state = _causal(q, k, v, log_decay, state, segment_ids_BT, **options)
    return o, sequence_parallel.of_last(state, reverse=reverse)


def _entering(narrow, k, v, log_decay, state, segment_ids_BT, reverse=False):
    """The state before the first token, where the sequence is spread over devices."""
    if sequence_parallel.shards() == 1:
        return state
    dtype = state.dtype
    keys, values, decays, passes = k, v, log_decay, None
    if segment_ids_BT is not None:  # of the last segment, without the decay of its first token
        last_BT, passes_B = segments.leaving(segment_ids_BT)
        keys, values = keep(last_BT, k), keep(last_BT, v)
        decays = keep(last_BT & ~segments.starts(segment_ids_BT), log_decay)
        passes = passes_B[:, None, None]
    # Sums from the end on: they are exact where the decay is not yet nothing.
    since = lax.cumsum(decays, axis=1, reverse=True)
    after = jnp.pad(since[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    reaching = (keys * jnp.exp(after)).astype(narrow)
    update = jnp.einsum("bthk,bthv->bhkv", reaching, values, preferred_element_type=dtype)
    transition = jnp.exp(since[:, 0])
    if passes is not None:
        transition = jnp.where(passes, transition, 0)
    transition = transition[..., None]
    return sequence_parallel.entering_state(
        transition, update, state, segment_ids_BT, reverse=reverse
    )


def _causal(q, k, v, log_decay, state, segment_ids_BT, *, form, chunk_size):
    if form == "auto":
        form = "recurrent" if q.shape[1] == 1 else "chunk"
        if log_decay.shape[-1] == 1 and believed_to_win(q, v):
            form = "pallas"
    if form == "pallas":
        o, state = pallas_form(q, k, v, log_decay, state, segment_ids_BT, chunk_size)
        return opaque(o), state
    log_decay = recurrence.clipped(log_decay.astype(state.dtype))
    starts = None
    if segment_ids_BT is not None:
        # The decay of a segment's first token acts on a state that is dropped: any value will do.
        starts = segments.starts(segment_ids_BT)[..., None, None]
        log_decay = jnp.where(starts, 0, log_decay)
        if form == "chunk":  # whose sums of decays would take a NaN into the next document
            is_finite = jnp.all(jnp.isfinite(log_decay), axis=-1, keepdims=True)
            log_decay = jnp.where(is_finite, log_decay, 0)
            v = jnp.where(is_finite, v, jnp.nan)
    if form == "chunk":
        return chunk_form(q, k, v, log_decay, state, segment_ids_BT, chunk_size)
    if form == "parallel":
        o, state = _parallel(q, k, v, log_decay, state, segment_ids_BT)
        return opaque(o), state
    retention = jnp.exp(log_decay)
    if starts is not None:
        retention = jnp.where(starts, 0, retention)
    scan = recurrence.recurrent if form == "recurrent" else recurrence.associative
    o, state = scan(q, k, v, retention[..., None], state)
    return opaque(o), state


def _parallel(q, k, v, log_decay, state, segment_ids_BT):
    """The masked quadratic form: all differences of the summed logarithms, masked before exp."""
    dtype = state.dtype
    batch, time = q.shape[:2]
    run_BT = jnp.zeros((batch, time), jnp.int32)
    if segment_ids_BT is not None:
        run_BT = segments.run_index(segment_ids_BT)
    visible_BTS = run_BT[:, :, None] == run_BT[:, None]
    visible_BTS &= jnp.tril(jnp.ones((time, time), bool))
    # b_t within each segment: not even a rounding error crosses to another one.
    sums = jnp.einsum(
        "bts,bshk->bthk", visible_BTS.astype(dtype), log_decay, precision=lax.Precision.HIGHEST
    )
    visible = visible_BTS[:, None, ..., None]
    decay_BHTSK = jnp.exp(jnp.where(visible, _between(log_decay, sums), -jnp.inf))
    if decay_BHTSK.shape[-1] == 1:
        weights = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=dtype)
        weights *= decay_BHTSK[..., 0]
    else:
        weights = jnp.einsum("bthk,bshk,bhtsk->bhts", q.astype(dtype), k, decay_BHTSK)
    o = jnp.einsum("bhts,bshv->bthv", weights, v, preferred_element_type=dtype)
    first, last = (run_BT == 0)[..., None, None], (run_BT == run_BT[:, -1:])[..., None, None]
    o += jnp.where(first, jnp.einsum("bthk,bhkv->bthv", q * jnp.exp(sums), state), 0)
    k_last = jnp.where(last, k * jnp.moveaxis(decay_BHTSK[:, :, -1], 1, 2), 0)
    v_last = jnp.where(last, v, 0).astype(dtype)
    state = jnp.where(last[:, 0, ..., None], jnp.exp(sums[:, -1])[..., None] * state, 0)
    return o, state + jnp.einsum("bthk,bthv->bhkv", k_last, v_last)


@jax.custom_jvp
def _between(
    log_decay_BTHK: Float[Array, "B T H K"], sums_BTHK: Float[Array, "B T H K"]
) -> Float[Array, "B H T T K"]:
    """Sums of log a from the token after s up to t, as differences of the sums up to a token."""
    sums_BHTK = jnp.moveaxis(sums_BTHK, 2, 1)
    return sums_BHTK[:, :, :, None] - sums_BHTK[:, :, None]


@_between.defjvp
def _(primals, tangents):
    """The sums themselves, so that a gradient is no difference of larger ones."""
    dlog_decay_BHTK = jnp.moveaxis(tangents[0], 2, 1)
    time = dlog_decay_BHTK.shape[2]
    after = jnp.tril(jnp.ones((time, time), bool), -1)[..., None]
    terms = jnp.where(after, dlog_decay_BHTK[:, :, :, None], 0)
    return _between(*primals), lax.cumsum(terms, axis=2)
