"""Linear attention with decay: the gated recurrence, with gates of keys, of values, or of both.

    S_t = diag(a_t) S_{t-1} diag(c_t) + k_t v_t^T,    o_t = S_t^T q_t,    a_t, c_t <= 1

A fixed scalar per head is retention (Sun et al., 2023, arXiv:2307.08621, equations 5-7), a scalar
per token the gate of Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060, section 6), and a vector a_t over
the key features the gate of gated linear attention (Yang et al., 2023, arXiv:2312.06635, equations
3-5).  Gated slot attention (Zhang et al., 2024, arXiv:2409.07146) uses a_t and, for its scores, a
vector c_t over the value features; else c_t is 1.  To normalise the weights, append a column of
ones to the values and divide by its output.

A non-finite token affects no earlier output and no other segment.  This is exact in the recurrent
and the associative form; in the chunk forms it holds outside of the token's own chunk, and
`parallel` is one chunk.  The gradients of unaffected outputs are unaffected too.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import checks, pallas, recurrence, segments, sequence_parallel
from linear_transformer.ops.decay_chunk import chunk_form
from linear_transformer.ops.non_finite import keep, stop_non_finite_gradient
from linear_transformer.ops.pallas.choice import prefers_kernel
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
    log_decay: Float[Array, " H"] | Float[Array, "B T H"] | Float[Array, "B T H K"] | None,
    *,
    log_value_decay_BTHV: Float[Array, "B T H V"] | None = None,
    direction: str = "causal",
    bonus_HK: Float[Array, "H K"] | None = None,
    initial_state: State | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_mask_BS: KeyMask | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, State]:
    """Computes attention with weights q_i^T (a_{j+1} ... a_i k_j), in time and memory linear in T.

    Args:
      q_BTHK: queries (not scaled).
      k_BTHK: keys.
      v_BTHV: values.
      log_decay: log a_t <= 0: (H,), fixed per head; (B, T, H), a scalar per token; or (B, T, H, K),
        a vector over the key features.  -inf forgets everything before the token; None is 0.
      log_value_decay_BTHV: log c_t <= 0, a vector over the value features; None is 0.
      direction: "causal" (keys up to the query), "anticausal" (keys from the query on; then
        S_t = a_t S_{t+1} + k_t v_t^T), or "bidirectional": both, with the token's own key once
        (Afzal et al., 2025, arXiv:2502.16249).
      bonus_HK: weight of the token's own key; the token's gate then does not decay the earlier
        tokens: o_t = (S_{t-1} + diag(bonus) k_t v_t^T)^T q_t (RWKV-6; Peng et al., 2024,
        arXiv:2404.05892); causal only.
      initial_state: (B, H, K, V), the state before the first token (after the last token if
        anticausal), in the segment of that token; zeros if None.
      segment_ids_BT: packed segments; each token sees only its own segment.
      key_mask_BS: False drops a key exactly; the decay of the token still acts.
      form: "recurrent", "parallel" (O(T^2) memory, times the widths of vector gates),
        "associative", "chunk", "pallas" (the chunk form as a TPU kernel, without decays of values),
        or "auto": "recurrent" for T = 1, else "pallas" for scalars where `ops.pallas.choice`
        expects it to be faster, else "chunk".
      chunk_size: tokens per chunk of the chunk form; the kernel and vector gates round up to a
        power of two.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the final state (of the causal part if
      bidirectional) in the accumulation dtype.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    checks.choice("direction", direction, DIRECTIONS)
    checks.choice("form", form, recurrence.FORMS)
    checks.counts(chunk_size=chunk_size)
    sizes = checks.arrays(
        q_BTHK=q_BTHK,
        k_BTHK=k_BTHK,
        v_BTHV=v_BTHV,
        log_value_decay_BTHV=(log_value_decay_BTHV, "BTHV"),
        bonus_HK=(bonus_HK, "HK"),
        initial_state=(initial_state, "BHKV"),
    )
    masks = {"segment_ids_BT": segment_ids_BT, "key_mask_BS": key_mask_BS}
    checks.tokens(sizes | {"S": sizes["T"]}, **masks)
    checks.log_decay(log_decay, sizes)
    checks.at_most_zero("log_value_decay_BTHV", log_value_decay_BTHV)
    if form == "pallas" and log_value_decay_BTHV is not None:
        raise ValueError("form is 'pallas'; the kernel has no log_value_decay_BTHV")
    if bonus_HK is not None and direction != "causal":
        raise ValueError(f"direction is {direction!r}; a bonus needs causal")
    dtype = accumulation_dtype(q_BTHK, k_BTHK, v_BTHV)
    if key_mask_BS is not None:
        k_BTHK, v_BTHV = keep(key_mask_BS, k_BTHK), keep(key_mask_BS, v_BTHV)
    state = recurrence.initial_state(initial_state, tuple(sizes[x] for x in "BHKV"), dtype)
    if q_BTHK.size == 0:  # an empty batch, or no tokens
        return jnp.zeros(v_BTHV.shape, v_BTHV.dtype), state
    log_decay = jnp.zeros(q_BTHK.shape[2], dtype) if log_decay is None else log_decay
    decays = (recurrence.per_token(log_decay, q_BTHK),)
    if log_value_decay_BTHV is not None:
        decays = (*decays, log_value_decay_BTHV)
    arrays = (q_BTHK, k_BTHK, v_BTHV, decays)
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
        o = stop_non_finite_gradient(o)
    return o.astype(v_BTHV.dtype), state


def _own(q, k, v, dtype):
    """Output of each query for the key of its own token."""
    return jnp.sum(q.astype(dtype) * k, axis=-1, keepdims=True) * v


def _state_decay(decays):
    """Decay (.., #K, #V) of a state, from log decays of keys (.., #K) and, if given, values."""
    decay, *of_values = (jnp.exp(x) for x in decays)
    decay = decay[..., None]
    return decay * of_values[0][..., None, :] if of_values else decay


def _with_bonus(attend, q, k, v, decays, bonus, state, segment_ids_BT):
    """Attends from the query of token t + 1 to S_t, and from the first query to the initial state.

    A non-finite token, which a chunk form spreads within its chunk, thus reaches the token after
    the chunk too.
    """
    # In the chunk of the previous token a non-finite query would make earlier outputs NaN.
    is_finite = jnp.all(jnp.isfinite(q), axis=-1, keepdims=True)
    q_read, starts = jnp.where(is_finite, q, 0), None
    if segment_ids_BT is not None:
        starts = segments.starts(segment_ids_BT)[..., None, None]
        q_read = jnp.where(starts, 0, q_read)
    q_next = jnp.pad(q_read[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    state = _entering(jnp.result_type(q, k, v), k, v, decays, state, segment_ids_BT)
    first = jnp.einsum("bhk,bhkv->bhv", q_read[:, 0].astype(state.dtype), state)
    o, final = attend(q_next, k, v, decays, state, segment_ids_BT)
    o = jnp.concatenate([first[:, None], o[:, :-1]], axis=1)
    if starts is not None:
        o = jnp.where(starts, 0, o)
    # The own term makes the output of a non-finite query NaN.
    return o + _own(q * bonus, k, v, state.dtype), sequence_parallel.of_last(final)


def _sharded(q, k, v, decays, state, segment_ids_BT, *, reverse=False, **options):
    """Runs `_causal` on a shard of a sequence, or on the whole sequence."""
    narrow = jnp.result_type(q, k, v)
    state = _entering(narrow, k, v, decays, state, segment_ids_BT, reverse)
    o, state = _causal(q, k, v, decays, state, segment_ids_BT, **options)
    return o, sequence_parallel.of_last(state, reverse=reverse)


def _entering(narrow, k, v, decays, state, segment_ids_BT, reverse=False):
    """Returns the state before this shard's first token; the given state on a single shard."""
    if sequence_parallel.shards() == 1:
        return state
    dtype = state.dtype
    reaching, passes = [k, v], None
    if segment_ids_BT is not None:  # only its last segment, without the decay of the first token
        last_BT, passes_B = segments.leaving(segment_ids_BT)
        reaching = [keep(last_BT, x) for x in reaching]
        decays = [keep(last_BT & ~segments.starts(segment_ids_BT), x) for x in decays]
        passes = passes_B[:, None, None, None]
    # Sums run from the end, so they are exact where the total decay is not yet 0.
    since = [lax.cumsum(x, axis=1, reverse=True) for x in decays]
    for axis, sums in enumerate(since):
        after = jnp.pad(sums[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
        reaching[axis] = (reaching[axis] * jnp.exp(after)).astype(narrow)
    update = jnp.einsum("bthk,bthv->bhkv", *reaching, preferred_element_type=dtype)
    transition = _state_decay([sums[:, 0] for sums in since])
    if passes is not None:
        transition = jnp.where(passes, transition, 0)
    return sequence_parallel.entering_state(
        transition, update, state, segment_ids_BT, reverse=reverse
    )


def _causal(q, k, v, decays, state, segment_ids_BT, *, form, chunk_size):
    if form == "auto":
        form = "recurrent" if q.shape[1] == 1 else "chunk"
        scalar = len(decays) == 1 and decays[0].shape[-1] == 1
        if scalar and prefers_kernel(q, v):
            form = "pallas"
    if form == "pallas":
        with checks.reverse_mode(form):
            return pallas.decay.pallas_form(q, k, v, decays[0], state, segment_ids_BT, chunk_size)
    decays = [recurrence.clipped(x.astype(state.dtype)) for x in decays]
    starts = None
    if segment_ids_BT is not None:
        # The decay of a segment's first token acts on a dropped state: its value is irrelevant.
        starts = segments.starts(segment_ids_BT)[..., None, None]
        decays = [jnp.where(starts, 0, x) for x in decays]
    if form == "chunk":
        with checks.reverse_mode(form):
            return chunk_form(q, k, v, decays, state, segment_ids_BT, chunk_size)
    if form == "parallel":
        o, state = _parallel(q, k, v, decays, state, segment_ids_BT)
        return stop_non_finite_gradient(o), state
    retention = _state_decay(decays)
    if starts is not None:
        retention = jnp.where(starts[..., None], 0, retention)
    scan = recurrence.recurrent if form == "recurrent" else recurrence.associative
    o, state = scan(q, k, v, retention, state)
    return stop_non_finite_gradient(o), state


def _parallel(q, k, v, decays, state, segment_ids_BT):
    """Computes the masked quadratic form: summed logarithms, differences, mask, then exp.

    A decay of values is a scalar decay for each column of the state.
    """
    log_decay, *of_values = decays
    if of_values:

        def column(v, decay, state):
            v, both, state = v[..., None], [log_decay + decay[..., None]], state[..., None]
            o, state = _parallel(q, k, v, both, state, segment_ids_BT)
            return o[..., 0], state[..., 0]

        return jax.vmap(column, in_axes=-1, out_axes=-1)(v, of_values[0], state)
    dtype = state.dtype
    batch, time = q.shape[:2]
    run_BT = jnp.zeros((batch, time), jnp.int32)
    if segment_ids_BT is not None:
        run_BT = segments.segment_index(segment_ids_BT)
    visible_BTS = run_BT[:, :, None] == run_BT[:, None]
    visible_BTS &= jnp.tril(jnp.ones((time, time), bool))
    # b_t is summed within each segment: not even a rounding error reaches another segment.
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
    """Sums of log a over the tokens s + 1 to t, as differences of running sums."""
    sums_BHTK = jnp.moveaxis(sums_BTHK, 2, 1)
    return sums_BHTK[:, :, :, None] - sums_BHTK[:, :, None]


@_between.defjvp
def _(primals, tangents):
    """Sums the terms themselves, so that no gradient is a difference of larger numbers."""
    dlog_decay_BHTK = jnp.moveaxis(tangents[0], 2, 1)
    time = dlog_decay_BHTK.shape[2]
    after = jnp.tril(jnp.ones((time, time), bool), -1)[..., None]
    terms = jnp.where(after, dlog_decay_BHTK[:, :, :, None], 0)
    return _between(*primals), lax.cumsum(terms, axis=2)
