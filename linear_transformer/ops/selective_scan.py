"""Diagonal recurrences: every number of the state has its own decay.

    h_t = a_t * h_{t-1} + b_t

In Mamba (Gu and Dao, 2023, arXiv:2312.00752, section 3) a_t = exp(dt_t A) and b_t = dt_t B_t x_t
for each of D channels with N numbers, and the output is y_t = C_t^T h_t: `selective_scan`.  With
negative eigenvalues, a_t = 2 exp(dt_t A) - 1 (Grazzi et al., 2024, arXiv:2411.12537).  In the LRU
(Orvieto et al., 2023, arXiv:2303.06349) and S5 (Smith et al., 2022, arXiv:2208.04933), a is complex
and fixed: `diagonal_scan`.  All forms multiply factors a_t, not exponentials of sums of logarithms,
so that a_t can have any sign.

Forms: "recurrent", one `lax.scan` step per token; "associative", `lax.associative_scan` over the
maps h -> a h + b, with O(T D N) memory; "chunk", which steps through the tokens of one chunk at a
time and recomputes the chunk in the backward pass, so that T / C states are stored.  There is no
parallel form: each of the D N numbers would have its own T x T weights.

In all forms a non-finite token affects only later outputs of its own segment, and no gradient
passes through a non-finite output.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact

from linear_transformer.ops import checks, recurrence, segments, sequence_parallel
from linear_transformer.ops.custom_vjp import custom_vjp
from linear_transformer.ops.non_finite import stop_non_finite_gradient
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import SegmentIds

FORMS = ("auto", "recurrent", "associative", "chunk")
DIRECTIONS = ("causal", "anticausal")
CHUNK_SIZE = 64


def selective_scan(
    x_BTD: Float[Array, "B T D"],
    dt_BTD: Float[Array, "B T D"],
    a_ND: Float[Array, "N D"],
    b_BTN: Float[Array, "B T N"],
    c_BTN: Float[Array, "B T N"],
    *,
    negative_eigenvalues: bool = False,
    direction: str = "causal",
    initial_state: Float[Array, "B N D"] | None = None,
    segment_ids_BT: SegmentIds | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B N D"]]:
    """Computes h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t and y_t = C_t^T h_t for every channel.

    Args:
      x_BTD: input.
      dt_BTD: step sizes, positive.
      a_ND: A, negative.
      b_BTN: B, the weights with which the input enters the state.
      c_BTN: C, the weights with which the state enters the output.
      negative_eigenvalues: whether 2 exp(dt_t A) - 1, from -1 to 1, replaces exp(dt_t A).
      direction: "causal", or "anticausal": from the last token to the first.
      initial_state: (B, N, D), the state before the first token (after the last token if
        anticausal), in the segment of that token; zeros if None.
      segment_ids_BT: packed segments; each token sees only its own segment.
      form: "recurrent", "associative", "chunk" or "auto": "recurrent" for T = 1, else "chunk".
      chunk_size: tokens per chunk of the chunk form.

    Returns:
      The output (B, T, D) in the dtype of x, and the final state.  The state and all computations
      are in the accumulation dtype.

    Raises:
      ValueError: an argument has a wrong type, shape or value.
    """
    sizes = checks.arrays(
        x_BTD=x_BTD,
        dt_BTD=dt_BTD,
        a_ND=a_ND,
        b_BTN=b_BTN,
        c_BTN=c_BTN,
        initial_state=(initial_state, "BND"),
    )
    if checks.is_known(a_ND) and np.any(np.asarray(a_ND) > 0):
        raise ValueError("a_ND has positive entries: states would grow without bound")
    _check(sizes, segment_ids_BT, direction, form, chunk_size)
    batch, channels, width = (sizes[axis] for axis in "BDN")
    dtype = accumulation_dtype(x_BTD, dt_BTD, a_ND, b_BTN, c_BTN)
    a_ND = a_ND.astype(dtype)

    def expand(inputs):
        x, dt, b, _ = inputs
        decays = _decays(dt, a_ND)
        factors = 2 * decays - 1 if negative_eigenvalues else decays
        return factors, jnp.einsum("tbn,tbd->tbnd", b, dt * x)

    def read(h, inputs):
        return jnp.einsum("tbnd,tbn->tbd", h, inputs[3])

    # A non-finite C_t would turn a gradient of 0 into NaN for all earlier tokens.
    readable_BTx = jnp.all(jnp.isfinite(c_BTN), axis=-1, keepdims=True)
    c_BTN = jnp.where(readable_BTx, c_BTN, 0)
    inputs = tuple(x.astype(dtype) for x in (x_BTD, dt_BTD, b_BTN, c_BTN))
    state = recurrence.initial_state(initial_state, (batch, width, channels), dtype)

    def product(inputs):
        x, dt, *others = inputs
        if not negative_eigenvalues:
            return jnp.exp(jnp.sum(dt, axis=1)[:, None] * a_ND)
        # What the recurrence makes of a state of ones, without inputs.
        tokens = (jnp.zeros_like(x), dt, *others)
        return _by_form(expand, read, tokens, None, "chunk", chunk_size, jnp.ones_like(state))[1]

    options = (segment_ids_BT, direction, form, chunk_size)
    y, state = _run(expand, read, product, inputs, state, *options)
    return jnp.where(readable_BTx, y, jnp.nan).astype(x_BTD.dtype), state


def diagonal_scan(
    b_BTN: Inexact[Array, "B T N"],
    a: Inexact[Array, " N"] | Inexact[Array, "B T N"],
    *,
    direction: str = "causal",
    initial_state: Inexact[Array, "B N"] | None = None,
    segment_ids_BT: SegmentIds | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Inexact[Array, "B T N"], Inexact[Array, "B N"]]:
    """Computes h_t = a_t * h_{t-1} + b_t, real or complex; returns all states and the last one.

    Args:
      b_BTN: input of the state.
      a: factors of modulus at most 1, fixed (N,) or per token (B, T, N).

    The other arguments are as in `selective_scan`.
    """
    checks.required(a=a)
    sizes = checks.arrays(b_BTN=b_BTN, kind=jnp.inexact)
    batch, width = sizes["B"], sizes["N"]
    checks.arrays(
        sizes,
        a=(a, "N" if jnp.ndim(a) == 1 else "BTN"),
        initial_state=(initial_state, "BN"),
        kind=jnp.inexact,
    )
    _check(sizes, segment_ids_BT, direction, form, chunk_size)
    dtype = accumulation_dtype(b_BTN, a)
    a = a.astype(dtype)
    inputs = (b_BTN.astype(dtype),) if a.ndim == 1 else (b_BTN.astype(dtype), a)

    def expand(inputs):
        return jnp.broadcast_to(inputs[1] if len(inputs) == 2 else a, inputs[0].shape), inputs[0]

    def product(inputs):
        if len(inputs) == 2:
            return jnp.prod(inputs[1], axis=1)
        return jnp.broadcast_to(a ** inputs[0].shape[1], (batch, width))

    state = recurrence.initial_state(initial_state, (batch, width), dtype)
    options = (segment_ids_BT, direction, form, chunk_size)
    return _run(expand, lambda h, _: h, product, inputs, state, *options)


# On CPU, XLA sums by a matrix product 5 times faster than by a reduction over an axis: hence the
# einsums above, and the matmuls with ones here.


@jax.custom_vjp
def _decays(dt_TBD: Float[Array, "T B D"], a_ND: Float[Array, "N D"]) -> Float[Array, "T B N D"]:
    return jnp.exp(dt_TBD[..., None, :] * a_ND)


def _decays_forward(dt_TBD, a_ND):
    decays = _decays(dt_TBD, a_ND)
    return decays, (dt_TBD, a_ND, decays)


def _decays_backward(residuals, gradient):
    dt_TBD, a_ND, decays = residuals
    exponent = gradient * decays
    ddt = jnp.matmul(jnp.ones_like(a_ND[:, 0])[None], exponent * a_ND)
    rows = (exponent * dt_TBD[..., None, :]).reshape(-1, a_ND.size)
    da = jnp.matmul(jnp.ones((1, rows.shape[0]), rows.dtype), rows)
    return ddt[..., 0, :], da.reshape(a_ND.shape)


_decays.defvjp(_decays_forward, _decays_backward)


def _check(sizes, segment_ids_BT, direction, form, chunk_size):
    checks.choice("direction", direction, DIRECTIONS)
    checks.choice("form", form, FORMS)
    checks.counts(chunk_size=chunk_size)
    checks.tokens(sizes, segment_ids_BT=segment_ids_BT)


def _run(
    expand: Callable[[Any], tuple[Array, Array]],
    read: Callable[[Array, Any], Array],
    product: Callable[[Any], Array],
    inputs: tuple[Array, ...],
    state: Array,
    segment_ids_BT: SegmentIds | None,
    direction: str,
    form: str,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """Computes y = read(h, inputs) of h_t = a_t h_{t-1} + b_t with (a, b) = expand(inputs).

    `expand` and `read` treat each token by itself, so the forms choose how many tokens to expand at
    once. `product(inputs)` is the product of all a_t, for a sequence that is spread over devices.
    """
    batch, time = inputs[0].shape[:2]
    if 0 in (batch, time):
        y = jax.eval_shape(read, jnp.zeros((time, *state.shape), state.dtype), _time_first(inputs))
        return jnp.zeros((batch, time, *y.shape[2:]), y.dtype), state
    if form == "auto":
        form = "recurrent" if time == 1 else "chunk"

    def scan(*arguments, reverse=False):
        *inputs, state, ids_BT = arguments
        run = functools.partial(_by_form, expand, read, tuple(inputs), ids_BT, form, chunk_size)
        if sequence_parallel.shards() > 1:
            state = _entering(run, product(inputs), state, ids_BT, reverse)
        with checks.no_forward_mode(f"form {form!r}", "it has all derivatives in reverse mode"):
            y, state = run(state)
        return stop_non_finite_gradient(y), sequence_parallel.of_last(state, reverse=reverse)

    arguments = (*inputs, state, segment_ids_BT)
    return scan(*arguments) if direction == "causal" else recurrence.backwards(scan, *arguments)


def _time_first(arrays):
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), arrays)


def _entering(run, product, state, segment_ids_BT, reverse):
    """Returns the state before a shard's first token; one run from zeros gives its own update."""
    _, update = run(jnp.zeros_like(state))
    if segment_ids_BT is not None:
        starts_B = segments.starts(segment_ids_BT).any(axis=1)
        product = jnp.where(starts_B.reshape(-1, *[1] * (product.ndim - 1)), 0, product)
    return sequence_parallel.entering_state(product, update, state, segment_ids_BT, reverse=reverse)


def _by_form(expand, read, inputs, segment_ids_BT, form, chunk_size, state):
    time = inputs[0].shape[1]
    starts_BT = None if segment_ids_BT is None else segments.starts(segment_ids_BT)
    tokens = _time_first((inputs, starts_BT))

    def several(state, tokens, scan):
        """Computes any number of tokens, with all their states at once."""
        inputs, starts = tokens
        a, b = expand(inputs)
        if starts is not None:
            a = jnp.where(starts.reshape(*starts.shape, *[1] * (a.ndim - 2)), 0, a)
        h = _states(scan, a, b, state)
        return h[-1], read(h, inputs)

    if form == "associative":
        state, y = several(state, tokens, _associative)
    elif form == "recurrent":

        def step(state, token):
            state, y = several(state, jax.tree.map(lambda x: x[None], token), _single)
            return state, y[0]

        state, y = lax.scan(step, state, tokens)
    else:
        chunk = min(CHUNK_SIZE if chunk_size is None else chunk_size, time)
        body = jax.checkpoint(functools.partial(several, scan=_stepwise))
        whole = time // chunk * chunk
        chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk, *x.shape[1:]), tokens)
        state, y = lax.scan(body, state, chunks)
        y = y.reshape(whole, *y.shape[2:])
        if whole < time:
            state, rest = body(state, jax.tree.map(lambda x: x[whole:], tokens))
            y = jnp.concatenate([y, rest])
    return jnp.moveaxis(y, 0, 1), state


def _product(a: Array, h: Array) -> Array:
    """Computes a h, and 0 where either factor is 0, even if the other one is NaN."""
    return jnp.where((a == 0) | (h == 0), 0, a * h)


def _single(a: Array, b: Array, state: Array) -> Array:
    """Returns the state of one token (1, ...)."""
    return _product(a, state) + b


def _associative(a: Array, b: Array, state: Array) -> Array:
    """Returns all states (T, ...); the initial state enters the first map."""
    b = b.at[0].add(_product(a[0], state))

    def compose(earlier, later):
        return _product(later[0], earlier[0]), _product(later[0], earlier[1]) + later[1]

    return lax.associative_scan(compose, (a, b))[1]


def _stepwise(a: Array, b: Array, state: Array) -> Array:
    """Returns all states (T, ...), computed one after the other."""

    def step(h, token):
        h = _product(token[0], h) + token[1]
        return h, h

    return lax.scan(step, state, (a, b))[1]


@custom_vjp(0)
def _states(scan: Callable[..., Array], a: Array, b: Array, state: Array) -> Array:
    """Computes all states (T, ...) by one of the scans above, also in the backward pass."""
    return scan(a, b, state)


def _states_forward(scan, a, b, state):
    h = scan(a, b, state)
    return h, (a, h, state)


def _states_backward(scan, residuals, dh):
    """Computes db_t = dh_t + a_{t+1} db_{t+1}, a recurrence in reverse, and da_t = db_t h_{t-1}."""
    a, h, state = residuals
    following = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    db = jnp.flip(scan(jnp.flip(following, 0), jnp.flip(dh, 0), jnp.zeros_like(state)), 0)
    before = jnp.concatenate([state[None], h[:-1]])
    return _product(db, before), db, _product(a[0], db[0])


_states.defvjp(_states_forward, _states_backward)
