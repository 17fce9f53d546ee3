"""The delta rule as a TPU kernel: the equations of `ops.delta_chunk`, chunk by chunk.

With the weights A of the queries and L of the read vectors, and the entering state S,

    (I + L) u = v - R S          o = A u + Q S          S' = total S + W^T u

The inverse of I + L is computed by halves, as stably as by substitution.  The inverse and all
products that enter the next state have full precision; query results may have operands in bf16 (see
`ops.delta`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from linear_transformer.ops.pallas.arithmetic import (
    COLUMNS_BY_COLUMNS,
    ROWS_BY_ROWS,
    Masks,
    column,
    exact,
    later_or_same,
    matmul,
    row,
    strictly_later,
    unrounded,
)
from linear_transformer.ops.pallas.chunk_scan import Arrays, chunk_scan
from linear_transformer.ops.pallas.decays import NoDecays, ScalarDecays, VectorDecays, meet
from linear_transformer.ops.recurrence import clipped
from linear_transformer.types import Keys, Outputs, Queries, SegmentIds, State, Values

CHUNK_SIZE = 64

LogDecay = Float[Array, "B T H _"]


def delta_form(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    log_decay: LogDecay | None,
    beta_BTH: Float[Array, "B T H"],
    state_BHKV: State,
    segment_ids_BT: SegmentIds | None,
    chunk_size: int | None,
) -> tuple[Outputs, State]:
    """Computes `ops.delta.delta_attention`; the kernel derives read and write vectors from keys."""
    step = _DeltaRule(_Step(jnp.result_type(q_BTHK, k_BTHK, v_BTHV)))
    tokens = (q_BTHK, k_BTHK, v_BTHV)
    return _scan(step, tokens, log_decay, (beta_BTH,), state_BHKV, segment_ids_BT, chunk_size)


def pallas_form(
    q_BTHK: Queries,
    r_BTHK: Keys,
    w_BTHK: Keys,
    v_BTHV: Values,
    log_decay: LogDecay,
    state_BHKV: State,
    segment_ids_BT: SegmentIds | None,
    chunk_size: int | None,
    narrow: jnp.dtype,
) -> tuple[Outputs, State]:
    """Computes the recurrence of `ops.delta` with given read and write vectors r and w."""
    tokens = (q_BTHK, r_BTHK, w_BTHK, v_BTHV)
    return _scan(_Step(narrow), tokens, log_decay, (), state_BHKV, segment_ids_BT, chunk_size)


def _scan(step, tokens, log_decay, gates, state, segment_ids_BT, chunk_size):
    if log_decay is None:
        pass
    elif log_decay.shape[-1] == 1:
        gates = (*gates, log_decay[..., 0])
    else:
        tokens = (log_decay, *tokens)
    chunk = chunk_size or CHUNK_SIZE
    o, (state,) = chunk_scan(step, tokens, gates, (state,), segment_ids_BT, chunk)
    return o, state


class _Step(NamedTuple):
    narrow: jnp.dtype

    def __call__(
        self, tokens: Arrays, gates: Arrays, state: Arrays, masks: Masks
    ) -> tuple[Array, Arrays]:
        *vectors, q, r, w, v = _finite(masks, *tokens)
        scalars, (entering,) = _finite(masks, *gates), _finite(masks, *state)
        decays = NoDecays()
        if vectors or scalars:
            decays = VectorDecays(*vectors) if vectors else ScalarDecays(*scalars)
        chunk = q.shape[0]
        low = decays.weights(r, w, self.narrow, before=True)
        low = masks.within(low, strictly_later(chunk))
        weights = decays.weights(q, w, self.narrow)
        weights = masks.within(weights, later_or_same(chunk))
        r_read, q_read = masks.reads(r * decays.read_before), masks.reads(q * decays.read)
        written = solve(low, v - unrounded(r_read, entering), masks.runs_1C)
        (u,) = _finite(masks, written)
        o = matmul(weights, u, self.narrow) + matmul(q_read, entering, self.narrow)
        update = unrounded(masks.reaches(w * decays.reach), u, COLUMNS_BY_COLUMNS)
        leaving = masks.carried(decays.total * entering) + update
        if masks.packed:
            o, leaving = _set_nan(o, leaving, written, tokens, gates, state[0], masks)
        return o, (leaving,)


def _finite(masks, *arrays):
    """Replaces non-finite entries by zeros in packed sequences: 0 x NaN is NaN."""
    if not masks.packed:
        return arrays
    return tuple(jnp.where(jnp.isfinite(x), x, 0) for x in arrays)


def _set_nan(o, leaving, written, tokens, gates, entering, masks):
    """Sets outputs and state to NaN from a non-finite entry on, within its segment.

    Flags are the numbers 1 and 0.
    """
    *vectors, q, r, w, v = tokens
    before = jnp.max(_flags(entering), axis=0, keepdims=True)
    rows = [_flags(x) for x in (*vectors, r, w, v, written)]
    rows += [column(jnp.where(jnp.isfinite(x), 0.0, 1.0)) for x in gates]
    rows.append(masks.reads(jnp.broadcast_to(before, rows[0].shape)))
    rows_C1 = functools.reduce(jnp.maximum, rows)
    chunk = q.shape[0]
    pairs_CC = jnp.broadcast_to(row(rows_C1), (chunk, chunk))
    seen_C1 = jnp.max(masks.within(pairs_CC, later_or_same(chunk)), axis=1, keepdims=True)
    after = jnp.max(masks.reaches(rows_C1), axis=0, keepdims=True) + masks.carried(before)
    o = jnp.where(seen_C1 + _flags(q) > 0, jnp.nan, o)
    return o, jnp.where(after > 0, jnp.nan, leaving)


def _flags(x):
    """Returns (C, 1): 1 where a row is not finite."""
    return jnp.max(jnp.where(jnp.isfinite(x), 0.0, 1.0), axis=1, keepdims=True)


class _DeltaRule(NamedTuple):
    """Step with the read vectors a k and the write vectors b k."""

    step: _Step

    def __call__(
        self, tokens: Arrays, gates: Arrays, state: Arrays, masks: Masks
    ) -> tuple[Array, Arrays]:
        *vectors, q, k, v = tokens
        beta, *scalars = gates
        r, w = k, column(beta) * k
        if vectors or scalars:
            r = jnp.exp(clipped(vectors[0] if vectors else column(*scalars))) * k
        return self.step((*vectors, q, r, w, v), tuple(scalars), state, masks)


@jax.custom_vjp
def solve(low_CC: Array, x_CV: Array, runs_1C: Array | None) -> Array:
    """Computes (I + L)^-1 x for strictly lower triangular L; C is a power of two.

    With the segment runs of packed sequences, an overflow stays in its own segment.
    """
    return _solve_forward(low_CC, x_CV, runs_1C)[0]


def _solve_forward(low, x, runs):
    inverse = _inverse(low, runs)
    u = unrounded(inverse, x)
    if runs is None:
        return u, (inverse, u)
    return u, tuple(jnp.where(jnp.isfinite(y), y, 0) for y in (inverse, u))


def _solve_backward(residuals, g):
    inverse, u = residuals
    e = unrounded(inverse, g, COLUMNS_BY_COLUMNS)
    return -matmul(e, u, e.dtype, ROWS_BY_ROWS), e, None


solve.defvjp(_solve_forward, _solve_backward)


def _inverse(low, runs=None):
    """Computes (I + L)^-1: with X the inverses of the halves, the quarter below is -X L X."""
    chunk = low.shape[0]

    def product(a, b):
        ab = exact(a, b)
        return ab if runs is None else jnp.where(column(runs) == runs, ab, 0)

    inverse = jnp.where(later_or_same(chunk) ^ strictly_later(chunk), 1, jnp.zeros_like(low))
    half = 1
    while half < chunk:
        quarter = jnp.where(meet(chunk, half), low, 0)
        inverse -= product(inverse, product(quarter, inverse))
        half *= 2
    return inverse
