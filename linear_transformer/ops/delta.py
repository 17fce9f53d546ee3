"""The delta rule: a recurrence that replaces what a key has stored instead of adding to it.

    S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T,    o_t = S_t^T q_t

First the state decays by a_t = exp(log_decay_t) <= 1, then the value that it returns for k_t moves
towards v_t by the step b_t.  Without decay this is DeltaNet (Yang et al. 2024, arXiv:2406.06484,
section 2.2), with a scalar decay Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024,
arXiv:2412.06464, section 3.1), with a vector over the key features Kimi Delta Attention (Kimi Team
2025, arXiv:2510.26692, section 3).  Several steps per token are DeltaProduct (Siems et al. 2025,
arXiv:2502.10297), and RWKV-7 (Peng et al. 2025, arXiv:2503.14456) has a diagonal matrix plus one of
rank one in front of the state.  Some of these papers write the state transposed, as V x K.

All of them are one recurrence in which the vector that reads and the one that writes are free:

    u_t = v_t - S_{t-1}^T r_t
    S_t = diag(a_t) S_{t-1} + w_t u_t^T

The delta rule has r = a k and w = b k.  A token of RWKV-7, S_t = (diag(a_t) + f_t g_t^T) S_{t-1}
+ k_t v_t^T, is two of these: (r, w, v) = (-g, f, 0) with its decay, and (0, k, v) without one.
DeltaProduct has one for each of its steps.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import segments, sequence_parallel
from linear_transformer.ops.delta_chunk import chunk_form
from linear_transformer.ops.pallas.delta import delta_form, pallas_form
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import Keys, Outputs, Queries, SegmentIds, State, Values

FORMS = ("auto", "recurrent", "associative", "chunk", "pallas")

LogDecay = Float[Array, " H"] | Float[Array, "B T H"] | Float[Array, "B T H K"]


def delta_attention(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    log_decay: LogDecay | None,
    beta_BTH: Float[Array, "B T H"],
    *,
    initial_state: State | None = None,
    segment_ids_BT: SegmentIds | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, State]:
    """The delta rule, with or without decay, in time and memory linear in T.

    Args:
      q_BTHK: queries (not scaled).
      k_BTHK: keys.  The state stays bounded where beta |k|^2 <= 2: normalise them.
      v_BTHV: values.
      log_decay: log a_t <= 0.  None is no decay (DeltaNet); (H,), fixed per head, or (B, T, H), a
        scalar per token (Gated DeltaNet); (B, T, H, K), a vector over the key features (KDA).  -inf
        forgets everything before the token.
      beta_BTH: steps b_t from 0 to 1; beyond, to 2, the transition has a negative eigenvalue.
      initial_state: (B, H, K, V), what came before the first token in the same segment; zeros if
        None.
      segment_ids_BT: packed documents; each token sees its own segment only.
      form: "recurrent", "associative" (K x K numbers a token: for short T), "chunk", "pallas" (the
        chunk form as a TPU kernel), or "auto": one call of "recurrent" for T = 1, else "chunk"
        (`ops.pallas.choice` says why on a TPU too).
      chunk_size: tokens per chunk of the chunk form and the kernel; the next power of two is taken.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the final state in the accumulation dtype.

    Raises:
      ValueError: on an unknown form, or on shapes that do not fit.
    """
    _check(q_BTHK, k_BTHK, v_BTHV, log_decay, initial_state, form, chunk_size)
    _check_shape("beta", beta_BTH, q_BTHK.shape[:3])
    dtype = accumulation_dtype(q_BTHK, k_BTHK, v_BTHV)
    if form == "pallas" and sequence_parallel.shards() == 1:
        if log_decay is not None:
            log_decay = _spread(log_decay, q_BTHK, dtype)
        arrays = (q_BTHK, k_BTHK, v_BTHV, log_decay, beta_BTH)
        state = _initial(initial_state, q_BTHK, v_BTHV, dtype)
        return delta_form(*arrays, state, segment_ids_BT, chunk_size)
    log_decay = _per_token(log_decay, q_BTHK, dtype)
    reads = (jnp.exp(log_decay) * k_BTHK).astype(k_BTHK.dtype)
    writes = (beta_BTH[..., None].astype(dtype) * k_BTHK).astype(k_BTHK.dtype)
    tokens = (q_BTHK, reads, writes, v_BTHV, log_decay)
    return _sharded(tokens, initial_state, segment_ids_BT, form, chunk_size)


def delta_product(
    q_BTHK: Queries,
    k_BTNHK: Float[Array, "B T N H K"],
    v_BTNHV: Float[Array, "B T N H V"],
    log_decay: LogDecay | None,
    beta_BTNH: Float[Array, "B T N H"],
    *,
    initial_state: State | None = None,
    segment_ids_BT: SegmentIds | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, State]:
    """N steps of the delta rule per token, the first after the decay, the last before the query.

    Siems et al. 2025, equations 5-6 (without decay) and section 3.1 (Gated DeltaProduct).
    The arguments are those of `delta_attention`, with keys, values and betas of every step; T N
    tokens are what it costs.  N = 1 is `delta_attention`.
    """
    batch, time, steps, heads, _ = k_BTNHK.shape
    _check(q_BTHK, k_BTNHK[:, :, 0], v_BTNHV[:, :, 0], log_decay, initial_state, form, chunk_size)
    _check_shape("beta", beta_BTNH, (batch, time, steps, heads))
    dtype = accumulation_dtype(q_BTHK, k_BTNHK, v_BTNHV)
    log_decay = _per_token(log_decay, q_BTHK, dtype)
    first = jnp.exp(log_decay)[:, :, None] * k_BTNHK[:, :, :1]
    reads = jnp.concatenate([first.astype(k_BTNHK.dtype), k_BTNHK[:, :, 1:]], axis=2)
    writes = (beta_BTNH[..., None].astype(dtype) * k_BTNHK).astype(k_BTNHK.dtype)
    later = ((0, 0), (0, 0), (0, steps - 1), (0, 0), (0, 0))
    earlier = ((0, 0), (0, 0), (steps - 1, 0), (0, 0), (0, 0))
    tokens = (
        jnp.pad(q_BTHK[:, :, None], earlier),
        reads,
        writes,
        v_BTNHV,
        jnp.pad(log_decay[:, :, None], later),
    )
    return _attend_in_steps(tokens, initial_state, segment_ids_BT, form, chunk_size)


def low_rank_delta_attention(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    log_decay: LogDecay,
    write_BTHK: Keys,
    read_BTHK: Keys,
    *,
    initial_state: State | None = None,
    segment_ids_BT: SegmentIds | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, State]:
    """RWKV-7: S_t = (diag(a_t) + write_t read_t^T) S_{t-1} + k_t v_t^T, and o_t = S_t^T q_t.

    Peng et al. 2025, section 4.1, transposed: read is -kappa (normalised) and write is the
    in-context learning rate times kappa.  The other arguments are those of `delta_attention`; twice
    its T is what it costs.
    """
    _check(q_BTHK, k_BTHK, v_BTHV, log_decay, initial_state, form, chunk_size)
    _check_shape("write", write_BTHK, q_BTHK.shape)
    _check_shape("read", read_BTHK, q_BTHK.shape)
    log_decay = _per_token(log_decay, q_BTHK, accumulation_dtype(q_BTHK, k_BTHK, v_BTHV))

    def steps(first, second):
        return jnp.stack([first, second], axis=2)

    tokens = (
        steps(jnp.zeros_like(q_BTHK), q_BTHK),
        steps(-read_BTHK, jnp.zeros_like(read_BTHK)),
        steps(write_BTHK, k_BTHK),
        steps(jnp.zeros_like(v_BTHV), v_BTHV),
        steps(log_decay, jnp.zeros_like(log_decay)),
    )
    return _attend_in_steps(tokens, initial_state, segment_ids_BT, form, chunk_size)


def _check(q, k, v, log_decay, initial_state, form, chunk_size):
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; the delta rule has {', '.join(FORMS)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be positive")
    if k.shape != q.shape or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit")
    gates = (q.shape[2:3], q.shape[:3], q.shape)
    if log_decay is not None and log_decay.shape not in gates:
        raise ValueError(f"log_decay is {log_decay.shape}, not one of {gates}")
    if initial_state is not None:
        batch, _, heads, width = q.shape
        _check_shape("initial_state", initial_state, (batch, heads, width, v.shape[-1]))


def _check_shape(name, x, shape):
    if x.shape != shape:
        raise ValueError(f"{name} is {x.shape}, not {shape}")


def _spread(log_decay, q, dtype):
    """(B, T, H, 1) for none and scalars, (B, T, H, K) for vectors."""
    if log_decay is None:
        return jnp.zeros((*q.shape[:3], 1), dtype)
    if log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, q.shape[:3])
    return log_decay[..., None] if log_decay.ndim == 3 else log_decay


def _per_token(log_decay, q, dtype):
    """The same in `dtype`, and exp(-inf) without the inf."""
    # Below the logarithm of the smallest number exp is 0: sums of the clipped values stay finite.
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    return jnp.maximum(_spread(log_decay, q, dtype).astype(dtype), math.log(smallest))


def _initial(state, q, v, dtype):
    if state is None:
        batch, _, heads, width = q.shape
        return jnp.zeros((batch, heads, width, v.shape[-1]), dtype)
    return state.astype(dtype)


def _attend_in_steps(tokens, state, segment_ids_BT, form, chunk_size):
    """Tokens with an axis of steps after time; the output is that of the last step."""
    steps = tokens[0].shape[2]
    tokens = [x.reshape(x.shape[0], -1, *x.shape[3:]) for x in tokens]
    if segment_ids_BT is not None:
        segment_ids_BT = jnp.repeat(segment_ids_BT, steps, axis=1)
    o, state = _sharded(tokens, state, segment_ids_BT, form, chunk_size)
    return o[:, steps - 1 :: steps], state


def _sharded(tokens, state, segment_ids_BT, form, chunk_size):
    """`_attend` on a shard of a sequence, or on all of it.

    Outputs and the final state are affine in the entering state.  On K more columns that start as
    the identity, with values of 0, the recurrence gives what they multiply it by.
    """
    if sequence_parallel.shards() == 1:
        return _attend(tokens, state, segment_ids_BT, form, chunk_size)
    q, r, w, v, log_decay = tokens
    (batch, _, heads, width), values = q.shape, v.shape[-1]
    dtype = accumulation_dtype(q, r, w, v)
    if state is None:
        state = jnp.zeros((batch, heads, width, values), dtype)
    columns = ((0, 0), (0, 0), (0, 0), (0, width))
    identity = jnp.eye(width, values + width, values, dtype)
    start = jnp.broadcast_to(identity, (batch, heads, width, values + width))
    tokens = (q, r, w, jnp.pad(v.astype(dtype), columns), log_decay)
    o, final = _attend(tokens, start, segment_ids_BT, form, chunk_size)
    update, transition = final[..., :values], final[..., values:]
    state = sequence_parallel.entering_state(transition, update, state, segment_ids_BT, matrix=True)
    o = o[..., :values] + jnp.einsum("bthk,bhkv->bthv", o[..., values:], state)
    final = sequence_parallel.of_last(transition @ state + update)
    return o.astype(v.dtype), final


def _attend(tokens, state, segment_ids_BT, form, chunk_size):
    """The recurrence of reads r, writes w and values v, all in one form."""
    q, r, w, v, log_decay = tokens
    dtype = accumulation_dtype(q, r, w, v)
    state = _initial(state, q, v, dtype)
    if form == "auto":
        form = "recurrent" if q.shape[1] == 1 else "chunk"
    if form == "pallas":
        return pallas_form(q, r, w, v, log_decay, state, segment_ids_BT, chunk_size)
    decay_starts = None
    if segment_ids_BT is not None:
        # The first token of a segment finds nothing to read, and its decay acts on what is dropped.
        decay_starts = segments.starts(segment_ids_BT)[..., None, None]
        r, log_decay = (jnp.where(decay_starts, 0, x) for x in (r, log_decay))
    if form == "chunk":
        o, state = chunk_form(q, r, w, v, log_decay, state, segment_ids_BT, chunk_size)
        return o.astype(v.dtype), state
    decay = jnp.exp(log_decay)
    if decay_starts is not None:
        decay = jnp.where(decay_starts, 0, decay)
    scan = _recurrent if form == "recurrent" else _associative
    o, state = scan(*(x.astype(dtype) for x in (q, r, w, v, decay)), state)
    return o.astype(v.dtype), state


def _recurrent(q, r, w, v, decay, state):
    """The definition, one `lax.scan` step per token."""

    def step(state_BHKV, token):
        q_BHK, r_BHK, w_BHK, v_BHV, decay_BHK = token
        u_BHV = v_BHV - jnp.einsum("bhk,bhkv->bhv", r_BHK, state_BHKV)
        state_BHKV = decay_BHK[..., None] * state_BHKV + w_BHK[..., :, None] * u_BHV[..., None, :]
        return state_BHKV, jnp.einsum("bhk,bhkv->bhv", q_BHK, state_BHKV)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, r, w, v, decay))
    state, o_TBHV = lax.scan(step, state, tokens)
    return jnp.moveaxis(o_TBHV, 0, 1), state


def _associative(q, r, w, v, decay, state):
    """`lax.associative_scan` over the maps S -> M S + N with M = diag(a) - w r^T."""
    m = decay[..., None] * jnp.eye(r.shape[-1], dtype=r.dtype) - w[..., :, None] * r[..., None, :]
    n = w[..., :, None] * v[..., None, :]
    n = n.at[:, 0].add(m[:, 0] @ state)

    def compose(earlier, later):
        m_0, n_0 = earlier
        m_1, n_1 = later
        return m_1 @ m_0, m_1 @ n_0 + n_1

    _, states_BTHKV = lax.associative_scan(compose, (m, n), axis=1)
    return jnp.einsum("bthk,bthkv->bthv", q, states_BTHKV), states_BTHKV[:, -1]
