"""Chunk form of the delta rule, forward and backward, with O(T / C) stored states.

    u_t = v_t - S_{t-1}^T r_t,    S_t = diag(a_t) S_{t-1} + w_t u_t^T,    o_t = S_t^T q_t

Time is cut into blocks of G chunks of C tokens; one loop runs over the blocks.  Within a chunk,
with the decays of `ops.gates` (b_t is the sum of log a up to and including token t), the weights of
the queries q_i and of the read vectors r_i, which see the state one token earlier, are

    A_ij = sum_k q_ik exp(b_i     - b_j)_k w_jk        j <= i
    L_ij = sum_k r_ik exp(b_{i-1} - b_j)_k w_jk        j < i

and, with Q = exp(b_i) q_i, R = exp(b_{i-1}) r_i, W = exp(b_C - b_j) w_j and the entering state S,

    (I + L) u = v - R S          o = A u + Q S          S' = exp(b_C) S + W^T u

X = (I + L)^-1 is the UT transform, and X R and X v the WY representation of the product of
Householder-like matrices (Bischof and Van Loan 1987; Yang et al. 2024, arXiv:2406.06484, section
3).  Only u = X v - (X R) S and the states are computed chunk after chunk.

Given G = dL/do and the gradient S'* of the leaving state,

    e = X^T (A^T G + W S'*)                  dv = e
    dA = G u^T       dL = -e u^T             dQ = G S^T       dR = -e S^T       dW = u S'*^T
    S* = exp(b_C) S'* + Q^T G - R^T e

The inverse needs no gradient.  All decays are exponentials of non-positive differences.

The factors of the next state (L and its inverse, R, W, u and their products) are in the
accumulation dtype and in the highest precision of the platform, so that every transition is a
contraction (see `ops.delta`); A, Q and G may be narrower.

A non-finite token affects no earlier chunk, and no other segment outside of its own chunk, neither
outputs nor gradients.  In packed sequences, where products would carry 0 x NaN from one segment to
another, such a token is replaced by zeros, and NaN is written to the outputs that depend on it.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from linear_transformer.ops import block_loop
from linear_transformer.ops.blocks import matmul, needs_gradient
from linear_transformer.ops.gates import make_gate, totals

CHUNK_SIZE = 32  # on 2 CPU cores 1.2 to 1.5 times faster than 64
SUBSTITUTED = 8  # largest inverse by rows; larger ones are made of halves by products

_product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def chunk_form(q, r, w, v, log_decay, state, segment_ids_BT, chunk_size, narrow):
    # The inverse and the vector decays cut chunks in halves.
    blocking = block_loop.Blocking.of(v, chunk_size or CHUNK_SIZE, halved=True)
    tokens = (q, r, w, log_decay, v)
    return block_loop.attend_in_blocks(_Delta(narrow), blocking, tokens, state, segment_ids_BT)


@dataclasses.dataclass(frozen=True)
class _Delta:
    """Delta rule on one block, see `block_loop.BlockRule`; nothing is saved."""

    narrow: jnp.dtype
    saved: None = None

    def forward(self, tokens, state, masks, n):
        narrow, dtype = self.narrow, state.dtype
        q, *others = tokens
        affected = _affected(masks, *others)
        r, w, log_decay, v = _finite(masks, *others)
        gate = make_gate(log_decay, masks, narrow)
        u, entering, state = _states(_operands(r, w, v, gate), masks, state, affected)
        (u_finite,) = _finite(masks, u)
        o = matmul(gate.weights(q, w), u_finite, narrow, dtype)
        o += masks.reads(matmul(q * gate.read, entering, narrow, dtype))
        return state, _set_nan(o, _affected(masks, u)), None

    def backward(self, tokens, state, masks, n, saved, g, dstate):
        narrow, dtype = self.narrow, state.dtype
        q, r, w, log_decay, v = _finite(masks, *tokens)
        gate = make_gate(log_decay, masks, narrow)
        x = _operands(r, w, v, gate)
        u, entering = _finite(masks, *_states(x, masks, state)[:2])
        dweights = matmul(g, u.mT, narrow, dtype)
        weights, dq, dw, dpairs = gate.gradients(q, w, dweights)
        weights, inverse = _finite(masks, weights, x.inverse)
        x = x._replace(inverse=inverse)
        reads = matmul(masks.reads(q * gate.read).mT, masks.reads(g), narrow, dtype)
        through = matmul(weights.mT, g, narrow, dtype)
        e, leaving, dstate = _state_gradients(x, masks, g, reads, through, dstate)
        dlow = -_later(e) @ u.mT
        _, dr, dw_low, dpairs_low = gate.rounded_to(dtype).gradients(_later(r), w, dlow)
        dq_read = masks.reads(matmul(g, entering.mT, narrow, dtype) * gate.read)
        dr_read = masks.reads(-e @ entering.mT * _earlier(gate.read, 1))
        dw_reach = masks.reaches(u @ leaving.mT * gate.reach)
        dlog_decay = gate.log_decay_gradients(
            dpairs + dpairs_low,
            q * dq_read + _later(r * dr_read),
            w * dw_reach,
            jnp.sum(entering * leaving, axis=-1),
        )
        dr, dw = _earlier(dr, 0) + dr_read, dw + dw_low + dw_reach
        return dstate, (dq + dq_read, dr, dw, dlog_decay, e)


def _later(x):
    """Moves rows up by one, the last row is 0: a read vector is a query one token earlier."""
    return jnp.concatenate([x[..., 1:, :], jnp.zeros_like(x[..., :1, :])], axis=-2)


def _earlier(x, first):
    """Moves rows down by one; the first row is a constant."""
    return jnp.concatenate([jnp.full_like(x[..., :1, :], first), x[..., :-1, :]], axis=-2)


def _finite(masks, *arrays):
    """Replaces non-finite entries by zeros in packed sequences."""
    if masks.read is None:
        return arrays
    return tuple(jnp.where(jnp.isfinite(x), x, 0) for x in arrays)


def _affected(masks, *arrays) -> Bool[Array, "B H G C 1"] | None:
    """Mask of tokens that see a non-finite token of their chunk and segment; None if unpacked."""
    if masks.read is None:
        return None
    rows = [jnp.all(jnp.isfinite(x), axis=-1) for x in arrays]
    finite = functools.reduce(jnp.logical_and, rows)
    return jnp.any(masks.pairs & ~finite[..., None, :], axis=-1, keepdims=True)


def _set_nan(x, affected):
    return x if affected is None else jnp.where(affected, jnp.nan, x)


def _chosen(mask, g, rows):
    """Returns the rows of chunk g that a mask keeps."""
    return rows if mask is None else jnp.where(mask[:, :, g], rows, 0)


class _Operands(NamedTuple):
    """Operands of the sequential part, (B H G C ..) and in the accumulation dtype."""

    inverse: Float[Array, "B H G C C"]  # X
    r_read: Float[Array, "B H G C K"]  # R
    w_reach: Float[Array, "B H G C K"]  # W
    v: Float[Array, "B H G C V"]
    total: Float[Array, "B H G #K 1"]  # exp(b_C)


def _operands(r, w, v, gate):
    masks = gate.masks
    with jax.default_matmul_precision("highest"):
        low = gate.rounded_to(r.dtype).weights(_later(r), w)
    return _Operands(
        inverse=_inverse(_earlier(low, 0), None if masks.read is None else masks.pairs),
        r_read=masks.reads(r * _earlier(gate.read, 1)),
        w_reach=masks.reaches(w * gate.reach),
        v=v.astype(r.dtype),
        total=totals(gate),
    )


def _states(x: _Operands, masks, state, affected=None):
    """Returns the values u, the states entering the chunks, and the state leaving the block."""
    values = jnp.concatenate([x.v, x.r_read], axis=-1)
    v, r = jnp.split(_product(x.inverse, values), [x.v.shape[-1]], axis=-1)
    v = _set_nan(v, affected)
    states, written = [state], []
    for g in range(v.shape[2]):
        read_g = _chosen(masks.read, g, _product(r[:, :, g], states[-1]))
        written.append(v[:, :, g] - read_g)
        update = _product(x.w_reach[:, :, g].mT, _chosen(masks.reach, g, written[-1]))
        states.append(masks.carried(x.total[:, :, g] * states[-1], g) + update)
    return jnp.stack(written, axis=2), jnp.stack(states[:-1], axis=2), states[-1]


def _state_gradients(x: _Operands, masks, do, reads, through, dstate):
    """Returns e, the leaving states' gradients, and the gradient of the first entering state.

    Args:
      reads: Q^T G, the gradient of each entering state from the queries.
      through: A^T G.
    """
    values = jnp.concatenate([through, x.w_reach], axis=-1)
    e, w = jnp.split(_product(x.inverse.mT, values), [do.shape[-1]], axis=-1)
    gradients, errors, need_gradient = [dstate], [], needs_gradient(do, dstate, masks)
    for g in reversed(range(do.shape[2])):
        errors.append(e[:, :, g] + _product(w[:, :, g], gradients[-1]))
        leaving = masks.carried(gradients[-1], g)
        update = reads[:, :, g] - _product(x.r_read[:, :, g].mT, errors[-1])
        gradient = x.total[:, :, g] * leaving + update
        gradients.append(jnp.where(need_gradient[g], gradient, 0))
    return jnp.stack(errors[::-1], axis=2), jnp.stack(gradients[-2::-1], axis=2), gradients[-1]


def _inverse(
    low: Float[Array, "*batch C C"], pairs: Bool[Array, "*#batch C C"] | None = None
) -> Float[Array, "*batch C C"]:
    """Computes (I + L)^-1 for strictly lower triangular L by halves, as stably as substitution.

    With the inverses P and Q of the halves, the quarter below the diagonal is -Q L_21 P.  With
    `pairs` an overflow stays in its segment.
    """
    size = low.shape[-1]
    if size <= SUBSTITUTED:
        return _substituted(low, pairs)
    half = size // 2

    def quarters(x):
        return jnp.stack([x[..., :half, :half], x[..., half:, half:]], axis=-3)

    inverses = _inverse(quarters(low), None if pairs is None else quarters(pairs))
    p, q = inverses[..., 0, :, :], inverses[..., 1, :, :]
    corner = -_product(q, _product(low[..., half:, :half], p))
    if pairs is not None:
        corner = jnp.where(pairs[..., half:, :half], corner, 0)
    upper = jnp.concatenate([p, jnp.zeros_like(p)], axis=-1)
    return jnp.concatenate([upper, jnp.concatenate([corner, q], axis=-1)], axis=-2)


def _substituted(low, pairs):
    """Computes the inverse by rows: row i of I minus the earlier rows weighted by row i of L."""
    identity = jnp.eye(low.shape[-1], dtype=low.dtype)
    rows = []
    for i in range(low.shape[-1]):
        row = identity[i]
        for j in range(i):
            row = row - low[..., i, j, None] * rows[j]
        row = jnp.broadcast_to(row, (*low.shape[:-2], low.shape[-1]))
        rows.append(row if pairs is None else jnp.where(pairs[..., i, :], row, 0))
    return jnp.stack(rows, axis=-2)
