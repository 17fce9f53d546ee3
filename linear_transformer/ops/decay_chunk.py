"""The chunk form of attention with decay, forward and backward, in O(T / C) states.

Time is cut into blocks of G chunks of C tokens; one loop runs over the blocks.
Within a chunk, with the decays of `ops.gates`, the weights A of the pairs and the entering state S,

    o = A v + (read Q) S              S' = total S + (reach K)^T v

and, given G = dL/do and R = dL/dS', with dA = G v^T times the pair decays,

    dQ = dA K + read (G S^T)          dv = A^T G + (reach K) R
    dK = dA^T Q + reach (v R^T)       dS = total R + (read Q)^T G

A token that is not finite stays inside its own chunk, where masked products may spread it: nothing
before the chunk and nothing of another document outside it changes, outputs and gradients alike.
No gradient passes through an output that is not finite.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from linear_transformer.ops import segments
from linear_transformer.ops.blocks import Masks, heard, matmul, read, write
from linear_transformer.ops.gates import make_gate, totals

CHUNK_SIZE = 64
CHUNKS_PER_BLOCK = {"scalar": 4, "vector": 8}


def chunk_form(q, k, v, log_decay, state, segment_ids_BT, chunk_size):
    time, gate = q.shape[1], "scalar" if log_decay.shape[-1] == 1 else "vector"
    chunk = min(CHUNK_SIZE if chunk_size is None else chunk_size, time)
    if gate == "vector":
        chunk = 1 << (chunk - 1).bit_length()
    block = chunk * min(CHUNKS_PER_BLOCK[gate], -(-time // chunk))
    padding = -time % block
    run_BT = None if segment_ids_BT is None else segments.run_index(segment_ids_BT)
    if padding:  # zero keys add nothing, no decay; the padded tokens belong to the last segment
        pad = ((0, 0), (0, padding), (0, 0), (0, 0))
        q, k, v, log_decay = (jnp.pad(x, pad) for x in (q, k, v, log_decay))
        if run_BT is not None:
            run_BT = jnp.pad(run_BT, ((0, 0), (0, padding)), mode="edge")
    o, state = _chunked(q, k, v, log_decay, state, run_BT, chunk, block)
    return o[:, :time], state


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _chunked(q, k, v, log_decay, state, run_BT, chunk, block):
    return _chunked_forward(q, k, v, log_decay, state, run_BT, chunk, block)[0]


def _chunked_forward(q, k, v, log_decay, state, run_BT, chunk, block):
    dtype, narrow = state.dtype, jnp.result_type(q, k, v)
    count = q.shape[1] // block

    def body(n, carry):
        state, o, is_finite, states = carry
        states = states.at[n].set(state)
        q_n, k_n, v_n, log_decay_n = (read(x, n, chunk, block) for x in (q, k, v, log_decay))
        masks = Masks.of_block(run_BT, n, chunk, block)
        gate = make_gate(log_decay_n, masks, narrow)
        entering, state = _states(k_n * gate.reach, v_n, state, gate)
        o_n = matmul(gate.weights(q_n, k_n), v_n, narrow, dtype)
        o_n += masks.reads(matmul(q_n * gate.read, entering, narrow, dtype))
        is_finite_n = jnp.all(jnp.isfinite(o_n), axis=-1, keepdims=True)
        return state, write(o, o_n, n), write(is_finite, is_finite_n, n), states

    carry = (
        state,
        jnp.zeros(v.shape, v.dtype),
        jnp.zeros((*v.shape[:3], 1), bool),
        jnp.zeros((count, *state.shape), dtype),
    )
    state, o, is_finite, states = lax.fori_loop(0, count, body, carry)
    return (o, state), (q, k, v, log_decay, run_BT, states, is_finite)


def _chunked_backward(chunk, block, residuals, cotangents):
    q, k, v, log_decay, run_BT, states, is_finite = residuals
    do, dstate = cotangents
    dtype, narrow = states.dtype, jnp.result_type(q, k, v)
    count = states.shape[0]

    def body(i, carry):
        dstate, dq, dk, dv, dlog_decay = carry
        n = count - 1 - i
        q_n, k_n, v_n, g_n = (read(x, n, chunk, block) for x in (q, k, v, do))
        g_n = jnp.where(read(is_finite, n, chunk, block), g_n, 0)
        masks = Masks.of_block(run_BT, n, chunk, block)
        gate = make_gate(read(log_decay, n, chunk, block), masks, narrow)
        k_reach, q_read = k_n * gate.reach, q_n * gate.read
        entering, _ = _states(k_reach, v_n, states[n], gate)
        leaving, dstate = _state_gradients(q_read, g_n, dstate, gate)
        dweights = matmul(g_n, v_n.mT, narrow, dtype)
        weights, dq_n, dk_n, dpairs = gate.gradients(q_n, k_n, dweights)
        dq_read = masks.reads(matmul(g_n, entering.mT, narrow, dtype) * gate.read)
        dk_reach = masks.reaches(matmul(v_n, leaving.mT, narrow, dtype) * gate.reach)
        dv_n = matmul(weights.mT, g_n, narrow, dtype)
        dv_n += masks.reaches(matmul(k_reach, leaving, narrow, dtype))
        dlog_decay_n = gate.log_decay_gradients(
            dpairs, q_n * dq_read, k_n * dk_reach, jnp.sum(entering * leaving, axis=-1)
        )
        dq_n, dk_n = dq_n + dq_read, dk_n + dk_reach
        return (
            dstate,
            write(dq, dq_n, n),
            write(dk, dk_n, n),
            write(dv, dv_n, n),
            write(dlog_decay, dlog_decay_n, n),
        )

    carry = (dstate, *(jnp.zeros_like(x) for x in (q, k, v, log_decay)))
    dstate, dq, dk, dv, dlog_decay = lax.fori_loop(0, count, body, carry)
    return dq, dk, dv, dlog_decay, dstate, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _states(k_reach, v, state, gate):
    """The states entering the chunks of a block, and the one leaving it."""
    masks = gate.masks
    updates = matmul(masks.reaches(k_reach).mT, masks.reaches(v), gate.narrow, state.dtype)
    total = totals(gate)
    states = [state]
    for g in range(updates.shape[2]):
        states.append(masks.carried(total[:, :, g] * states[-1], g) + updates[:, :, g])
    return jnp.stack(states[:-1], axis=2), states[-1]


def _state_gradients(q_read, do, dstate, gate):
    """The same sum in reverse: gradients of the states leaving the chunks, and of the first one."""
    masks = gate.masks
    reads = matmul(masks.reads(q_read).mT, masks.reads(do), gate.narrow, dstate.dtype)
    total = totals(gate)
    gradients, is_heard = [dstate], heard(do, dstate, masks)
    for g in reversed(range(reads.shape[2])):
        leaving = masks.carried(gradients[-1], g)
        gradient = total[:, :, g] * leaving + reads[:, :, g]
        gradients.append(jnp.where(is_heard[g], gradient, 0))
    return jnp.stack(gradients[-2::-1], axis=2), gradients[-1]
