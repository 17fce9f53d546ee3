"""Chunk form of attention with decay, forward and backward, with O(T / C) stored states.

Time is cut into blocks of G chunks of C tokens; one loop runs over the blocks.  Within a chunk,
with the decays of `ops.gates`, the weights A of the pairs and the entering state S,

    o = A v + (read Q) S              S' = total S + (reach K)^T v

and, given G = dL/do and R = dL/dS', with dA = G v^T times the pair decays,

    dQ = dA K + read (G S^T)          dv = A^T G + (reach K) R
    dK = dA^T Q + reach (v R^T)       dS = total R + (read Q)^T G

Decays of values act in the same way on the values that reach, on the outputs that read, and on the
pairs of A v.

Masked products may spread a non-finite token within its own chunk; outside of it, earlier tokens
and other segments keep their outputs and gradients.  No gradient passes through a non-finite
output.
"""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from linear_transformer.ops import block_loop
from linear_transformer.ops.blocks import entering_states, leaving_gradients, matmul
from linear_transformer.ops.gates import VectorGate, make_gate, totals

CHUNK_SIZE = 64


def chunk_form(q, k, v, decays, state, segment_ids_BT, chunk_size):
    of_values = len(decays) == 2
    halved = of_values or decays[0].shape[-1] > 1  # by a vector gate
    blocking = block_loop.Blocking.of(v, chunk_size or CHUNK_SIZE, halved=halved)
    rule = (_ValueDecay if of_values else _Decay)(jnp.result_type(q, k, v))
    return block_loop.attend_in_blocks(rule, blocking, (q, k, *decays, v), state, segment_ids_BT)


@dataclasses.dataclass(frozen=True)
class _Decay:
    """Attention with decay on one block, see `block_loop.BlockRule`; finiteness is saved."""

    narrow: jnp.dtype
    saved: DTypeLike = bool

    def forward(self, tokens, state, masks, n):
        q, k, log_decay, v = tokens
        k, log_decay = _contained(k, log_decay, masks)
        narrow, dtype = self.narrow, state.dtype
        gate = make_gate(log_decay, masks, narrow)
        entering, state = entering_states(k * gate.reach, v, state, masks, narrow, totals(gate))
        o = matmul(gate.weights(q, k), v, narrow, dtype)
        o += masks.reads(matmul(q * gate.read, entering, narrow, dtype))
        return state, o, jnp.all(jnp.isfinite(o), axis=-1, keepdims=True)

    def backward(self, tokens, state, masks, n, is_finite, g, dstate):
        q, k, log_decay, v = tokens
        k, log_decay = _contained(k, log_decay, masks)
        narrow, dtype = self.narrow, state.dtype
        g = jnp.where(is_finite, g, 0)
        gate = make_gate(log_decay, masks, narrow)
        total, k_reach, q_read = totals(gate), k * gate.reach, q * gate.read
        entering, _ = entering_states(k_reach, v, state, masks, narrow, total)
        leaving, dstate = leaving_gradients(q_read, g, dstate, masks, narrow, total)
        dweights = matmul(g, v.mT, narrow, dtype)
        weights, dq, dk, dpairs = gate.gradients(q, k, dweights)
        dq_read = masks.reads(matmul(g, entering.mT, narrow, dtype) * gate.read)
        dk_reach = masks.reaches(matmul(v, leaving.mT, narrow, dtype) * gate.reach)
        dv = matmul(weights.mT, g, narrow, dtype)
        dv += masks.reaches(matmul(k_reach, leaving, narrow, dtype))
        dlog_decay = gate.log_decay_gradients(
            dpairs, q * dq_read, k * dk_reach, jnp.sum(entering * leaving, axis=-1)
        )
        return dstate, (dq + dq_read, dk + dk_reach, dlog_decay, dv)


class _ValueDecay(_Decay):
    """Attention with decays of keys and values on one block."""

    def forward(self, tokens, state, masks, n):
        q, k, log_decay, log_value_decay, v = tokens
        k, log_decay = _contained(k, log_decay, masks)
        v, log_value_decay = _contained(v, log_value_decay, masks)
        narrow, dtype = self.narrow, state.dtype
        gate, columns = self._gates(log_decay, log_value_decay, masks)
        total = totals(gate) * totals(columns).mT
        reaching = (k * gate.reach, v * columns.reach)
        entering, state = entering_states(*reaching, state, masks, narrow, total)
        o = columns.outputs(gate.weights(q, k), v)
        o += masks.reads(matmul(q * gate.read, entering, narrow, dtype) * columns.read)
        return state, o, jnp.all(jnp.isfinite(o), axis=-1, keepdims=True)

    def backward(self, tokens, state, masks, n, is_finite, g, dstate):
        q, k, log_decay, log_value_decay, v = tokens
        k, log_decay = _contained(k, log_decay, masks)
        v, log_value_decay = _contained(v, log_value_decay, masks)
        narrow, dtype = self.narrow, state.dtype
        gate, columns = self._gates(log_decay, log_value_decay, masks)
        key_total, value_total = totals(gate), totals(columns).mT
        total, k_reach, v_reach = key_total * value_total, k * gate.reach, v * columns.reach
        # A non-finite decay of the chunk must not reach gradients of 0.
        q_read, g_read = q * gate.read, jnp.where(is_finite, g * columns.read, 0)
        g = jnp.where(is_finite, g, 0)
        entering, _ = entering_states(k_reach, v_reach, state, masks, narrow, total)
        leaving, dstate = leaving_gradients(q_read, g_read, dstate, masks, narrow, total)
        weights = gate.weights(q, k)
        dweights, _, dv, dvalue_pairs = columns.gradients(g, v, weights)
        _, dq, dk, dpairs = gate.gradients(q, k, dweights)
        dq_read = masks.reads(matmul(g_read, entering.mT, narrow, dtype) * gate.read)
        dk_reach = masks.reaches(matmul(v_reach, leaving.mT, narrow, dtype) * gate.reach)
        dv_reach = masks.reaches(matmul(k_reach, leaving, narrow, dtype) * columns.reach)
        dread = masks.reads(matmul(q_read, entering, narrow, dtype) * g_read)
        dtotal = entering * leaving
        dlog_decay = gate.log_decay_gradients(
            dpairs, q * dq_read, k * dk_reach, jnp.sum(dtotal * value_total, axis=-1)
        )
        dlog_value_decay = columns.log_decay_gradients(
            dvalue_pairs, dread, v * dv_reach, jnp.sum(dtotal * key_total, axis=-2)
        )
        return dstate, (dq + dq_read, dk + dk_reach, dlog_decay, dlog_value_decay, dv + dv_reach)

    def _gates(self, log_decay, log_value_decay, masks):
        columns = VectorGate(log_value_decay, masks, self.narrow)
        return make_gate(log_decay, masks, self.narrow), columns


def _contained(x, log_decay, masks):
    """Moves NaN of decays to the features that they decay: sums of decays cross segments."""
    if masks.read is None:
        return x, log_decay
    is_finite = jnp.isfinite(log_decay)
    return jnp.where(is_finite, x, jnp.nan), jnp.where(is_finite, log_decay, 0)
