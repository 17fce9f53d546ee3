"""The delta rule as a TPU kernel: the equations of `ops.delta_chunk`, chunk by chunk.

With the weights A of the queries and L of the reads, and the entering state S,

    (I + L) u = v - R S          o = A u + Q S          S' = total S + W^T u

The inverse of I + L is computed by halves in full precision, as stable as substitution.
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
    strictly_later,
)
from linear_transformer.ops.pallas.chunk_scan import chunk_scan
from linear_transformer.ops.pallas.decays import NoDecays, ScalarDecays, VectorDecays, clipped, meet
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
    """`ops.delta.delta_attention`: what is read and written is made of the keys in the kernel."""
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
) -> tuple[Outputs, State]:
    """The recurrence of `ops.delta` with free reads and writes; chunks of the next power of two."""
    step = _Step(jnp.result_type(q_BTHK, r_BTHK, w_BTHK, v_BTHV))
    tokens = (q_BTHK, r_BTHK, w_BTHK, v_BTHV)
    return _scan(step, tokens, log_decay, (), state_BHKV, segment_ids_BT, chunk_size)


def _scan(step, tokens, log_decay, gates, state, segment_ids_BT, chunk_size):
    if log_decay is None:
        pass
    elif log_decay.shape[-1] == 1:
        gates = (*gates, log_decay[..., 0])
    else:
        tokens = (log_decay, *tokens)
    chunk = CHUNK_SIZE if chunk_size is None else 1 << (chunk_size - 1).bit_length()
    o, (state,) = chunk_scan(step, tokens, gates, (state,), segment_ids_BT, chunk)
    return o, state


class _Step(NamedTuple):
    narrow: jnp.dtype

    def __call__(
        self,
        tokens: tuple[Array, ...],
        gates: tuple[Array, ...],
        state: tuple[Array, ...],
        masks: Masks,
    ) -> tuple[Array, tuple[Array, ...]]:
        *vectors, q, r, w, v = tokens
        decays = NoDecays()
        if vectors or gates:
            decays = VectorDecays(*vectors) if vectors else ScalarDecays(*gates)
        chunk = q.shape[0]
        low = decays.weights(r, w, self.narrow, before=True)
        low = masks.within(low, strictly_later(chunk))
        weights = decays.weights(q, w, self.narrow)
        weights = masks.within(weights, later_or_same(chunk))
        r_read, q_read = masks.reads(r * decays.read_before), masks.reads(q * decays.read)
        u = solve(low, v - matmul(r_read, state[0], self.narrow), self.narrow)
        o = matmul(weights, u, self.narrow) + matmul(q_read, state[0], self.narrow)
        w_reach = masks.reaches(w * decays.reach)
        update = matmul(w_reach, u, self.narrow, COLUMNS_BY_COLUMNS)
        return o, (masks.carried(decays.total * state[0]) + update,)


class _DeltaRule(NamedTuple):
    """Reads a k and writes b k."""

    step: _Step

    def __call__(
        self,
        tokens: tuple[Array, ...],
        gates: tuple[Array, ...],
        state: tuple[Array, ...],
        masks: Masks,
    ) -> tuple[Array, tuple[Array, ...]]:
        *vectors, q, k, v = tokens
        beta, *scalars = gates
        r, w = k, column(beta) * k
        if vectors or scalars:
            r = jnp.exp(clipped(vectors[0] if vectors else column(*scalars))) * k
        return self.step((*vectors, q, r, w, v), tuple(scalars), state, masks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def solve(low_CC: Array, x_CV: Array, narrow: jnp.dtype) -> Array:
    """(I + L)^-1 x for strictly lower triangular L, C a power of two."""
    return _solve_forward(low_CC, x_CV, narrow)[0]


def _solve_forward(low, x, narrow):
    inverse = _inverse(low)
    u = matmul(inverse, x, narrow)
    return u, (inverse, u)


def _solve_backward(narrow, residuals, g):
    inverse, u = residuals
    e = matmul(inverse, g, narrow, COLUMNS_BY_COLUMNS)
    return -matmul(e, u, narrow, ROWS_BY_ROWS), e


solve.defvjp(_solve_forward, _solve_backward)


def _inverse(low):
    """With X the inverses of the halves, the quarter below them is that of -X L X."""
    chunk = low.shape[0]
    inverse = jnp.where(later_or_same(chunk) ^ strictly_later(chunk), 1, jnp.zeros_like(low))
    half = 1
    while half < chunk:
        quarter = jnp.where(meet(chunk, half), low, 0)
        inverse -= exact(inverse, exact(quarter, inverse))
        half *= 2
    return inverse
