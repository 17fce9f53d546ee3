"""The chunk form of the delta rule, forward and backward, in O(T / C) states.

    u_t = v_t - S_{t-1}^T r_t,    S_t = diag(a_t) S_{t-1} + w_t u_t^T,    o_t = S_t^T q_t

Time is cut into blocks of G chunks of C tokens; one loop runs over the blocks.  Within a chunk,
with the decays of `ops.gates` (b_t is the sum of log a up to and including token t), the queries
q_i, and the reads r_i, which see what a query of the token before would see, have the weights

    A_ij = sum_k q_ik exp(b_i     - b_j)_k w_jk        j <= i
    L_ij = sum_k r_ik exp(b_{i-1} - b_j)_k w_jk        j < i

and, with Q = exp(b_i) q_i, R = exp(b_{i-1}) r_i, W = exp(b_C - b_j) w_j and the entering state S,

    (I + L) u = v - R S          o = A u + Q S          S' = exp(b_C) S + W^T u

X = (I + L)^-1 is the UT transform, and X R and X v the WY representation of the product of
Householder-like matrices (Bischof and Van Loan 1987; Yang et al. 2024, arXiv:2406.06484, section
3).  Only u = X v - (X R) S and the states go from chunk to chunk in sequence.

Given G = dL/do and the gradient S'* of the leaving state,

    e = X^T (A^T G + W S'*)                  dv = e
    dA = G u^T       dL = -e u^T             dQ = G S^T       dR = -e S^T       dW = u S'*^T
    S* = exp(b_C) S'* + Q^T G - R^T e

Of the inverse no gradient is needed.  All decays are exponentials of non-positive differences.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import segments
from linear_transformer.ops.blocks import Masks, read, write
from linear_transformer.ops.gates import make_gate, totals

# On 2 CPU cores 32 is 1.2 to 1.5 times faster than 64, and blocks of 4 as fast as any.
CHUNK_SIZE = 32
CHUNKS_PER_BLOCK = 4
SUBSTITUTED = 8  # rows of the inverse that are solved one by one; matrix products do the rest


def chunk_form(q, r, w, v, log_decay, state, segment_ids_BT, chunk_size):
    time = q.shape[1]
    chunk = min(CHUNK_SIZE if chunk_size is None else chunk_size, time)
    chunk = 1 << (chunk - 1).bit_length()  # the inverse and the vector decays halve it
    block = chunk * min(CHUNKS_PER_BLOCK, -(-time // chunk))
    padding = -time % block
    run_BT = None if segment_ids_BT is None else segments.run_index(segment_ids_BT)
    if padding:  # zeros write nothing, no decay; the padded tokens belong to the last segment
        pad = ((0, 0), (0, padding), (0, 0), (0, 0))
        q, r, w, v, log_decay = (jnp.pad(x, pad) for x in (q, r, w, v, log_decay))
        if run_BT is not None:
            run_BT = jnp.pad(run_BT, ((0, 0), (0, padding)), mode="edge")
    o, state = _chunked(q, r, w, v, log_decay, state, run_BT, chunk, block)
    return o[:, :time], state


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _chunked(q, r, w, v, log_decay, state, run_BT, chunk, block):
    return _chunked_forward(q, r, w, v, log_decay, state, run_BT, chunk, block)[0]


def _chunked_forward(q, r, w, v, log_decay, state, run_BT, chunk, block):
    dtype = state.dtype
    count = q.shape[1] // block

    def body(n, carry):
        state, o, states = carry
        states = states.at[n].set(state)
        q_n, r_n, w_n, v_n, a_n = (read(x, n, chunk, block) for x in (q, r, w, v, log_decay))
        masks = Masks.of_block(run_BT, n, chunk, block, dtype)
        gate = make_gate(a_n, masks)
        weights, read_weights = gate.weights(*_pairs(q_n, r_n, w_n))
        operands = _operands(q_n, r_n, w_n, v_n, gate, masks, read_weights)
        u_n, entering, state = _states(operands, state)
        o_n = weights @ u_n + operands.q_read @ entering
        return state, write(o, o_n, n), states

    carry = (state, jnp.zeros(v.shape, v.dtype), jnp.zeros((count, *state.shape), dtype))
    state, o, states = lax.fori_loop(0, count, body, carry)
    return (o, state), (q, r, w, v, log_decay, run_BT, states)


def _chunked_backward(chunk, block, residuals, cotangents):
    q, r, w, v, log_decay, run_BT, states = residuals
    do, dstate = cotangents
    dtype = states.dtype
    count = states.shape[0]

    def body(i, carry):
        dstate, dq, dr, dw, dv, dlog_decay = carry
        n = count - 1 - i
        q_n, r_n, w_n, v_n, g_n = (read(x, n, chunk, block) for x in (q, r, w, v, do))
        g_n = g_n.astype(dtype)
        masks = Masks.of_block(run_BT, n, chunk, block, dtype)
        gate = make_gate(read(log_decay, n, chunk, block), masks)
        pairs = _pairs(q_n, r_n, w_n)
        weights, read_weights = gate.weights(*pairs)
        operands = _operands(q_n, r_n, w_n, v_n, gate, masks, read_weights)
        u_n, entering, _ = _states(operands, states[n])
        e_n, leaving, dstate = _state_gradients(operands, weights, g_n, dstate)
        dweights = jnp.stack([g_n, -_later(e_n)]) @ u_n.mT
        _, (dq_n, dr_n), dw_n, db = gate.gradients(*pairs, dweights)
        dq_read = masks.reads(g_n @ entering.mT * gate.read)
        dr_read = masks.reads(-e_n @ entering.mT * _earlier(gate.read, 1))
        dw_reach = masks.reaches(u_n @ leaving.mT * gate.reach)
        dlog_decay_n = gate.log_decay_gradients(
            jnp.sum(db, axis=0),
            q_n * dq_read + _later(r_n * dr_read),
            w_n * dw_reach,
            jnp.sum(entering * leaving, axis=-1),
        )
        return (
            dstate,
            write(dq, dq_n + dq_read, n),
            write(dr, _earlier(dr_n, 0) + dr_read, n),
            write(dw, jnp.sum(dw_n, axis=0) + dw_reach, n),
            write(dv, e_n, n),
            write(dlog_decay, dlog_decay_n, n),
        )

    carry = (dstate, *(jnp.zeros_like(x) for x in (q, r, w, v, log_decay)))
    dstate, dq, dr, dw, dv, dlog_decay = lax.fori_loop(0, count, body, carry)
    return dq, dr, dw, dv, dlog_decay, dstate, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _later(x):
    """Row i is row i + 1 of a chunk, the last one zeros: a read as a query of the token before."""
    return jnp.concatenate([x[..., 1:, :], jnp.zeros_like(x[..., :1, :])], axis=-2)


def _earlier(x, first):
    """Row i is row i - 1 of a chunk, the first one a constant."""
    return jnp.concatenate([jnp.full_like(x[..., :1, :], first), x[..., :-1, :]], axis=-2)


def _pairs(q, r, w):
    """Both kinds of readers against the writers: the weights of reads are L, a row further up."""
    readers = jnp.stack([q, _later(r).astype(q.dtype)])
    return readers, jnp.broadcast_to(w, readers.shape)


class _Operands(NamedTuple):
    """What the sequence of chunks works with, (B H G C ..) and in the accumulation dtype."""

    inverse: Float[Array, "B H G C C"]  # X
    q_read: Float[Array, "B H G C K"]  # Q
    r_read: Float[Array, "B H G C K"]  # R
    w_reach: Float[Array, "B H G C K"]  # W
    v: Float[Array, "B H G C V"]
    total: Float[Array, "B H G #K 1"]  # exp(b_C), 0 where a segment starts in the chunk


def _operands(q, r, w, v, gate, masks, read_weights):
    return _Operands(
        inverse=_inverse(_earlier(read_weights, 0)),
        q_read=masks.reads(q * gate.read),
        r_read=masks.reads(r * _earlier(gate.read, 1)),
        w_reach=masks.reaches(w * gate.reach),
        v=v.astype(gate.read.dtype),
        total=totals(gate, masks),
    )


def _states(x: _Operands, state):
    """The written values u, the states entering the chunks of a block, and the one leaving it."""
    values = jnp.concatenate([x.v, x.r_read], axis=-1)
    v, r = jnp.split(x.inverse @ values, [x.v.shape[-1]], axis=-1)
    states, written = [state], []
    for g in range(v.shape[2]):
        written.append(v[:, :, g] - r[:, :, g] @ states[-1])
        update = x.w_reach[:, :, g].mT @ written[-1]
        states.append(x.total[:, :, g] * states[-1] + update)
    return jnp.stack(written, axis=2), jnp.stack(states[:-1], axis=2), states[-1]


def _state_gradients(x: _Operands, weights, g, dstate):
    """In reverse: e, the gradients of the states leaving the chunks, and that of the first one."""
    values = jnp.concatenate([weights.mT @ g, x.w_reach], axis=-1)
    e, w = jnp.split(x.inverse.mT @ values, [g.shape[-1]], axis=-1)
    reads = x.q_read.mT @ g
    gradients, errors = [dstate], []
    for n in reversed(range(g.shape[2])):
        errors.append(e[:, :, n] + w[:, :, n] @ gradients[-1])
        update = reads[:, :, n] - x.r_read[:, :, n].mT @ errors[-1]
        gradients.append(x.total[:, :, n] * gradients[-1] + update)
    return jnp.stack(errors[::-1], axis=2), jnp.stack(gradients[-2::-1], axis=2), gradients[-1]


def _inverse(low: Float[Array, "*batch C C"]) -> Float[Array, "*batch C C"]:
    """(I + L)^-1 for strictly lower triangular L, by halves, as stable as substitution.

    With the inverses P and Q of the halves, the quarter below the diagonal is -Q L_21 P.
    """
    size = low.shape[-1]
    if size <= SUBSTITUTED:
        return _substituted(low)
    half = size // 2
    halves = jnp.stack([low[..., :half, :half], low[..., half:, half:]], axis=-3)
    inverses = _inverse(halves)
    p, q = inverses[..., 0, :, :], inverses[..., 1, :, :]
    corner = -(q @ (low[..., half:, :half] @ p))
    upper = jnp.concatenate([p, jnp.zeros_like(p)], axis=-1)
    return jnp.concatenate([upper, jnp.concatenate([corner, q], axis=-1)], axis=-2)


def _substituted(low):
    """Row i of the inverse is that of I minus the rows before it, weighted by row i of L."""
    identity = jnp.eye(low.shape[-1], dtype=low.dtype)
    rows = []
    for i in range(low.shape[-1]):
        row = identity[i]
        for j in range(i):
            row = row - low[..., i, j, None] * rows[j]
        rows.append(jnp.broadcast_to(row, (*low.shape[:-2], low.shape[-1])))
    return jnp.stack(rows, axis=-2)
