"""The delta rule: a recurrence that replaces the value stored for a key instead of adding to it.

    S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T,    o_t = S_t^T q_t

First the state decays by a_t = exp(log_decay_t) <= 1, then the value that the state returns for k_t
moves towards v_t by the step b_t.  Without decay this is DeltaNet (Yang et al. 2024,
arXiv:2406.06484, section 2.2), with a scalar decay Gated DeltaNet (Yang, Kautz and Hatamizadeh
2024, arXiv:2412.06464, section 3.1), with a vector over the key features Kimi Delta Attention (Kimi
Team 2025, arXiv:2510.26692, section 3).  Several steps per token are DeltaProduct (Siems et al.
2025, arXiv:2502.10297).  RWKV-7 (Peng et al. 2025, arXiv:2503.14456) multiplies the state by a
diagonal matrix plus a matrix of rank one.  Some of these papers write the state transposed, as
V x K.

All of them are one recurrence with arbitrary read vectors r_t and write vectors w_t:

    u_t = v_t - S_{t-1}^T r_t
    S_t = diag(a_t) S_{t-1} + w_t u_t^T

The delta rule has r = a k and w = b k.  Gated DeltaNet-2 (Hatamizadeh, Choi and Kautz 2026,
arXiv:2605.22791) has r = a (e * k), with a gate e_t of the key features, and w = k.  A token of
RWKV-7, S_t = (diag(a_t) + f_t g_t^T) S_{t-1} + k_t v_t^T, is two steps: (r, w, v) = (-g, f, 0) with
the token's decay, and (0, k, v) without decay.  A step of DeltaProduct is one step of the
recurrence.

**Every transition must be a contraction in finite precision.**  With a key of unit length and a
step of 2 the transition I - b k k^T has the eigenvalue -1.  In bf16, |k|^2 has an error of up to
2^-8 and the eigenvalue twice this error, so that a thousand tokens multiply a state by e^8.  Read
and write vectors, decays, the state and all their products are therefore in fp32 (or wider), in the
highest precision of the platform, for any dtype of the inputs; their rounding errors of 2^-24 shift
an eigenvalue too little to show within a million tokens.  If all inputs are bf16, only products
that nothing multiplies again are bf16: query results, and the gradients of one token.  Their error
stays near 2^-8 of an output.  Keys that must have unit length therefore have to arrive in fp32.

A non-finite token affects no earlier output and no other segment.  This is exact in the recurrent
and the associative form; in the chunk forms it holds outside of the token's own chunk.  The
gradients of unaffected outputs are unaffected too.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import checks, pallas, recurrence, segments, sequence_parallel
from linear_transformer.ops.delta_chunk import chunk_form
from linear_transformer.ops.non_finite import stop_non_finite_gradient
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
    """Computes the delta rule, with or without decay, in time and memory linear in T.

    Args:
      q_BTHK: queries (not scaled).
      k_BTHK: keys.  The state stays bounded if beta |k|^2 <= 2: normalise the keys, and pass them
        in fp32 if beta comes near to 2 (see the top of this file).
      v_BTHV: values.
      log_decay: log a_t <= 0, not checked inside `jax.jit`.  None is no decay (DeltaNet); (H,),
        fixed per head, or (B, T, H), a scalar per token (Gated DeltaNet); (B, T, H, K), a vector
        over the key features (KDA).  -inf forgets everything before the token.
      beta_BTH: steps b_t from 0 to 1; between 1 and 2 the transition has a negative eigenvalue.
      initial_state: (B, H, K, V), the state before the first token, in its segment; zeros if None.
      segment_ids_BT: packed segments; each token sees only its own segment.
      form: "recurrent", "associative" (K x K numbers per token: for short T), "chunk", "pallas"
        (the chunk form as a TPU kernel), or "auto": "recurrent" for T = 1, else "chunk", also on
        TPUs (for the reason see `ops.pallas.choice`).  "recurrent" and "associative" have
        derivatives of any order and mode, "chunk" of any order in reverse mode, "pallas" one in
        reverse mode.
      chunk_size: tokens per chunk of the chunk form and the kernel; rounded up to a power of two.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the final state in the accumulation dtype.  In
      every form, products with queries have bf16 operands if q, k and v all are bf16, else fp32 (or
      wider); all other products have fp32 operands.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
      TypeError: `jax.jvp` of "chunk" or "pallas".
      NotImplementedError: a second derivative of "pallas".
    """
    options = {"segment_ids_BT": segment_ids_BT, "form": form, "chunk_size": chunk_size}
    sizes = _check(
        options,
        log_decay,
        initial_state,
        q_BTHK=q_BTHK,
        k_BTHK=k_BTHK,
        v_BTHV=v_BTHV,
        beta_BTH=beta_BTH,
    )
    dtype = accumulation_dtype(q_BTHK, k_BTHK, v_BTHV)
    if form == "pallas" and q_BTHK.size and sequence_parallel.shards() == 1:
        if log_decay is not None:
            log_decay = recurrence.per_token(log_decay, q_BTHK)
        arrays = (q_BTHK, k_BTHK, v_BTHV, log_decay, beta_BTH)
        state = recurrence.initial_state(initial_state, tuple(sizes[x] for x in "BHKV"), dtype)
        with checks.reverse_mode(form):
            return pallas.delta.delta_form(*arrays, state, segment_ids_BT, chunk_size)
    log_decay = _per_token(log_decay, q_BTHK, dtype)
    k_wide = k_BTHK.astype(dtype)
    reads, writes = jnp.exp(log_decay) * k_wide, beta_BTH[..., None].astype(dtype) * k_wide
    narrow = jnp.result_type(q_BTHK, k_BTHK, v_BTHV)
    return _sharded((q_BTHK, reads, writes, v_BTHV, log_decay), initial_state, narrow, **options)


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
    """Computes N delta-rule steps per token, the first after the decay, the last before the query.

    Siems et al. 2025, equations 5-6 (without decay) and section 3.1 (Gated DeltaProduct).
    Arguments are as in `delta_attention`, with keys, values and betas of every step.  The cost is
    the cost of T N tokens; N = 1 is `delta_attention`.
    """
    options = {"segment_ids_BT": segment_ids_BT, "form": form, "chunk_size": chunk_size}
    sizes = _check(
        options,
        log_decay,
        initial_state,
        q_BTHK=q_BTHK,
        k_BTNHK=k_BTNHK,
        v_BTNHV=v_BTNHV,
        beta_BTNH=beta_BTNH,
    )
    steps = sizes["N"]
    if steps < 1:
        raise ValueError(f"k_BTNHK is {k_BTNHK.shape}; it must have at least one step N")
    dtype = accumulation_dtype(q_BTHK, k_BTNHK, v_BTNHV)
    log_decay = _per_token(log_decay, q_BTHK, dtype)
    k_wide = k_BTNHK.astype(dtype)
    first = jnp.exp(log_decay)[:, :, None] * k_wide[:, :, :1]
    later = ((0, 0), (0, 0), (0, steps - 1), (0, 0), (0, 0))
    earlier = ((0, 0), (0, 0), (steps - 1, 0), (0, 0), (0, 0))
    tokens = (
        jnp.pad(q_BTHK[:, :, None], earlier),
        jnp.concatenate([first, k_wide[:, :, 1:]], axis=2),
        beta_BTNH[..., None].astype(dtype) * k_wide,
        v_BTNHV,
        jnp.pad(log_decay[:, :, None], later),
    )
    narrow = jnp.result_type(q_BTHK, k_BTNHK, v_BTNHV)
    return _attend_in_steps(tokens, initial_state, narrow, **options)


def erase_delta_attention(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    log_decay: LogDecay | None,
    erase_BTHK: Keys,
    *,
    initial_state: State | None = None,
    segment_ids_BT: SegmentIds | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, State]:
    """Computes S_t = (I - k_t (e_t * k_t)^T) diag(a_t) S_{t-1} + k_t v_t^T, and o_t = S_t^T q_t.

    This is Gated DeltaNet-2 with the gated values v_t = w_t * v'_t.  With e_t = b_t and
    v_t = b_t v'_t it is `delta_attention`, which explains the other arguments.

    Args:
      erase_BTHK: gates e_t from 0 to 1, or 2 for negative eigenvalues.  If a gate differs between
        features, a product of transitions can grow with unit keys too, unless the decay is strong.
    """
    options = {"segment_ids_BT": segment_ids_BT, "form": form, "chunk_size": chunk_size}
    arrays = {"q_BTHK": q_BTHK, "k_BTHK": k_BTHK, "v_BTHV": v_BTHV, "erase_BTHK": erase_BTHK}
    _check(options, log_decay, initial_state, **arrays)
    log_decay = _per_token(log_decay, q_BTHK, accumulation_dtype(q_BTHK, k_BTHK, v_BTHV))
    k_wide = k_BTHK.astype(log_decay.dtype)
    reads = jnp.exp(log_decay) * erase_BTHK.astype(log_decay.dtype) * k_wide
    narrow = jnp.result_type(q_BTHK, k_BTHK, v_BTHV)
    return _sharded((q_BTHK, reads, k_wide, v_BTHV, log_decay), initial_state, narrow, **options)


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
    """Computes RWKV-7: S_t = (diag(a_t) + write_t read_t^T) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t.

    Peng et al. 2025, section 4.1, transposed: read is -kappa (normalised) and write is kappa times
    the in-context learning rate.  The transition is then similar to a symmetric matrix, with
    eigenvalues between min(a) - max(rate) and 1.  The other arguments are as in `delta_attention`;
    the cost is the cost of 2 T tokens.
    """
    options = {"segment_ids_BT": segment_ids_BT, "form": form, "chunk_size": chunk_size}
    _check(
        options,
        log_decay,
        initial_state,
        q_BTHK=q_BTHK,
        k_BTHK=k_BTHK,
        v_BTHV=v_BTHV,
        write_BTHK=write_BTHK,
        read_BTHK=read_BTHK,
    )
    arrays = (q_BTHK, k_BTHK, v_BTHV, write_BTHK, read_BTHK)
    dtype = accumulation_dtype(*arrays)
    log_decay = _per_token(log_decay, q_BTHK, dtype)

    def steps(first, second):
        return jnp.stack([first, second], axis=2)

    tokens = (
        steps(jnp.zeros_like(q_BTHK), q_BTHK),
        steps(-read_BTHK, jnp.zeros_like(read_BTHK)).astype(dtype),
        steps(write_BTHK, k_BTHK).astype(dtype),
        steps(jnp.zeros_like(v_BTHV), v_BTHV),
        steps(log_decay, jnp.zeros_like(log_decay)),
    )
    return _attend_in_steps(tokens, initial_state, jnp.result_type(*arrays), **options)


def _check(options, log_decay, initial_state, **tokens):
    checks.choice("form", options["form"], FORMS)
    checks.counts(chunk_size=options["chunk_size"])
    sizes = checks.arrays(**tokens, initial_state=(initial_state, "BHKV"))
    checks.log_decay(log_decay, sizes)
    checks.tokens(sizes, segment_ids_BT=options["segment_ids_BT"])
    return sizes


def _per_token(log_decay, q, dtype):
    """Applies `recurrence.per_token` in `dtype`, with zeros for None and without -inf."""
    log_decay = jnp.zeros(q.shape[2], dtype) if log_decay is None else log_decay
    return recurrence.clipped(recurrence.per_token(log_decay, q).astype(dtype))


def _attend_in_steps(tokens, state, narrow, *, segment_ids_BT, **options):
    """Attends over tokens with an axis of steps after time; returns the last step's output."""
    batch, time, steps = tokens[0].shape[:3]
    tokens = [x.reshape(batch, time * steps, *x.shape[3:]) for x in tokens]
    if segment_ids_BT is not None:
        segment_ids_BT = jnp.repeat(segment_ids_BT, steps, axis=1)
    o, state = _sharded(tokens, state, narrow, segment_ids_BT=segment_ids_BT, **options)
    return o[:, steps - 1 :: steps], state


def _sharded(tokens, state, narrow, *, segment_ids_BT, **options):
    """Runs `_attend` on a shard of a sequence, or on the whole sequence.

    Outputs and the final state are affine in the entering state.  K more value columns, which start
    as the identity and have values of 0, give the matrices that multiply the entering state.
    """
    q, r, w, v, log_decay = tokens
    (batch, _, heads, width), values = q.shape, v.shape[-1]
    dtype = accumulation_dtype(r)
    state = recurrence.initial_state(state, (batch, heads, width, values), dtype)
    if q.size == 0:  # an empty batch, or no tokens
        return jnp.zeros(v.shape, v.dtype), state
    if sequence_parallel.shards() == 1:
        return _attend(tokens, state, narrow, segment_ids_BT, **options)
    columns = ((0, 0), (0, 0), (0, 0), (0, width))
    identity = jnp.eye(width, values + width, values, dtype)
    start = jnp.broadcast_to(identity, (batch, heads, width, values + width))
    tokens = (q, r, w, jnp.pad(v.astype(dtype), columns), log_decay)
    o, final = _attend(tokens, start, narrow, segment_ids_BT, **options)
    update, transition = final[..., :values], final[..., values:]
    read_BT, passes_B = True, True  # one segment: the state reaches every token and leaves
    if segment_ids_BT is not None:
        run_BT = segments.segment_index(segment_ids_BT)
        read_BT, passes_B = (
            (run_BT == 0)[..., None, None],
            (run_BT[:, -1] == 0)[:, None, None, None],
        )
    # A non-finite transition becomes NaN in the update, where it multiplies no gradient.
    transition = jnp.where(passes_B, transition, 0)
    finite = jnp.all(jnp.isfinite(transition), axis=(-2, -1), keepdims=True)
    transition = jnp.where(finite, transition, 0)
    update = jnp.where(finite, update, jnp.nan)
    state = sequence_parallel.entering_state(transition, update, state, segment_ids_BT, matrix=True)
    # The gradient of a query result would be 0 times the state, NaN for a non-finite state.
    known = jnp.all(jnp.isfinite(state), axis=(-2, -1), keepdims=True)
    read = _readable("bthk,bhkv->bthv", o[..., values:], jnp.where(known, state, 0))
    read = jnp.where(jnp.swapaxes(known, 1, 2), read, jnp.nan)
    o = o[..., :values] + jnp.where(read_BT, read, 0)
    passed = jnp.matmul(transition, state, precision=lax.Precision.HIGHEST)
    final = sequence_parallel.of_last(jnp.where(passes_B, passed, 0) + update)
    return stop_non_finite_gradient(o).astype(v.dtype), final


def _attend(tokens, state, narrow, segment_ids_BT, form, chunk_size):
    """Computes the recurrence of read vectors r, write vectors w and values v in one form."""
    q, r, w, v, log_decay = tokens
    if form == "auto":
        form = "recurrent" if q.shape[1] == 1 else "chunk"
    if form == "pallas":
        compute = pallas.delta.pallas_form
        with checks.reverse_mode(form):
            o, state = compute(q, r, w, v, log_decay, state, segment_ids_BT, chunk_size, narrow)
        return stop_non_finite_gradient(o), state
    starts = None
    if segment_ids_BT is not None:
        # A segment's first token reads from an empty state, and its decay acts on a dropped one.
        starts = segments.starts(segment_ids_BT)[..., None, None]
        r, log_decay = (jnp.where(starts, 0, x) for x in (r, log_decay))
    if form == "chunk":
        with checks.reverse_mode(form):
            o, state = chunk_form(q, r, w, v, log_decay, state, segment_ids_BT, chunk_size, narrow)
        return stop_non_finite_gradient(o), state
    arrays = (x.astype(state.dtype) for x in (q, r, w, v, jnp.exp(log_decay)))
    scan = _recurrent if form == "recurrent" else _associative
    o, state = scan(*_non_finite_to_values(*arrays), starts, state)
    return stop_non_finite_gradient(o).astype(v.dtype), state


def _non_finite_to_values(q, r, w, v, decay):
    """Moves non-finite read vectors, write vectors and decays to the values, which become NaN.

    An output or a state on which nothing depends has a gradient of 0.  Multiplied by a non-finite
    transition, this 0 would become a gradient of NaN for all earlier tokens.
    """
    finite = [jnp.all(jnp.isfinite(x), axis=-1, keepdims=True) for x in (r, w, decay)]
    finite = finite[0] & finite[1] & finite[2]
    r, w, v = (jnp.where(finite, x, other) for x, other in ((r, 0), (w, 0), (v, jnp.nan)))
    return q, r, w, v, jnp.where(finite, decay, 1)


def _readable(equation, q, state):
    """Computes query results; a non-finite query gets NaN and gives the state no NaN gradient."""
    finite = jnp.all(jnp.isfinite(q), axis=-1, keepdims=True)
    return jnp.where(finite, jnp.einsum(equation, jnp.where(finite, q, 0), state), jnp.nan)


def _recurrent(q, r, w, v, decay, starts, state):
    """Computes the definition with one `lax.scan` step per token."""

    def step(state_BHKV, token):
        q_BHK, r_BHK, w_BHK, v_BHV, decay_BHK, start = token
        if start is not None:
            state_BHKV = jnp.where(start[..., None], 0, state_BHKV)
        read = jnp.einsum("bhk,bhkv->bhv", r_BHK, state_BHKV, precision=lax.Precision.HIGHEST)
        u_BHV = v_BHV - read
        state_BHKV = decay_BHK[..., None] * state_BHKV + w_BHK[..., :, None] * u_BHV[..., None, :]
        return state_BHKV, _readable("bhk,bhkv->bhv", q_BHK, state_BHKV)

    arrays = (q, r, w, v, decay, starts)
    tokens = tuple(None if x is None else jnp.moveaxis(x, 1, 0) for x in arrays)
    state, o_TBHV = lax.scan(step, state, tokens)
    return jnp.moveaxis(o_TBHV, 0, 1), state


def _associative(q, r, w, v, decay, starts, state):
    """Runs `lax.associative_scan` over the maps S -> M S + N with M = diag(a) - w r^T."""
    m = decay[..., None] * jnp.eye(r.shape[-1], dtype=r.dtype) - w[..., :, None] * r[..., None, :]
    # An overflow makes the update NaN instead, like a non-finite input (`_non_finite_to_values`).
    finite = jnp.all(jnp.isfinite(m), axis=(-2, -1), keepdims=True)
    n = jnp.where(finite, w[..., :, None] * v[..., None, :], jnp.nan)
    m = jnp.where(finite, m, 0)
    n = n.at[:, 0].add(_product(m[:, 0], state))

    def compose(earlier, later):
        start_0, m_0, n_0 = earlier
        start_1, m_1, n_1 = later
        if start_1 is not None:  # no state passes; 0 x NaN is NaN, also in gradients
            m_0, n_0 = (jnp.where(start_1, 0, x) for x in (m_0, n_0))
            start_1 = start_0 | start_1
        return start_1, _product(m_1, m_0), _product(m_1, n_0) + n_1

    starts = None if starts is None else starts[..., None]
    _, _, states_BTHKV = lax.associative_scan(compose, (starts, m, n), axis=1)
    return _readable("bthk,bthkv->bthv", q, states_BTHKV), states_BTHKV[:, -1]


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
