"""Linear attention with decay: the gated recurrence, with a scalar or a vector gate per head.

    S_t = a_t S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t,    a_t = exp(log_decay_t) <= 1

A fixed scalar per head is retention (Sun et al., 2023, arXiv:2307.08621, equations 5-7), a scalar
that depends on the token is the gate of Mamba-2 (Dao and Gu, 2024, arXiv:2405.21060, section 6), a
vector over the key features that of gated linear attention (Yang et al., 2023, arXiv:2312.06635,
equations 3-5).  Who wants a normaliser appends a column of ones to the values.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops import recurrence, segments
from linear_transformer.ops.blocks import Masks, matmul, read, write
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

CHUNK_SIZE = 64
CHUNKS_PER_BLOCK = {"scalar": 4, "vector": 8}


def decayed_attention(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    log_decay: Float[Array, " H"] | Float[Array, "B T H"] | Float[Array, "B T H K"],
    *,
    direction: str = "causal",
    initial_state: State | None = None,
    segment_ids_BT: SegmentIds | None = None,
    key_mask_BS: KeyMask | None = None,
    form: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Outputs, State]:
    """Attention with weights q_i^T (a_{j+1} ... a_i k_j), in time and memory linear in T.

    Args:
      q_BTHK: queries (not scaled).
      k_BTHK: keys.
      v_BTHV: values.
      log_decay: log a_t <= 0: (H,), fixed per head; (B, T, H), a scalar per token; or (B, T, H, K),
        a vector over the key features.  -inf forgets everything before the token.
      direction: "causal" (keys up to the query) or "anticausal" (keys from the query on; then
        S_t = a_t S_{t+1} + k_t v_t^T).
      initial_state: (B, H, K, V), what came before the first token (after the last one if
        anticausal) in the same segment; zeros if None.
      segment_ids_BT: packed documents; each token sees its own segment only.
      key_mask_BS: False drops a key exactly; the decay at its place still acts.
      form: "recurrent", "parallel" (with a vector gate, O(T^2 K) memory), "associative", "chunk",
        or "auto": one call of "recurrent" for T = 1, else "chunk".
      chunk_size: tokens per chunk of the chunk form; with a vector gate the next power of two.

    Returns:
      The output (B, T, H, V) in the dtype of v, and the final state in the accumulation dtype.

    Raises:
      ValueError: on an unknown direction or form, or on shapes that do not fit.
    """
    _check(q_BTHK, k_BTHK, v_BTHV, log_decay, direction, form, initial_state)
    batch, time, heads, width = q_BTHK.shape
    dtype = accumulation_dtype(q_BTHK, k_BTHK, v_BTHV)
    if key_mask_BS is not None:
        k_BTHK = jnp.where(key_mask_BS[:, :, None, None], k_BTHK, 0)
    if initial_state is None:
        initial_state = jnp.zeros((batch, heads, width, v_BTHV.shape[-1]), dtype)
    if log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, (batch, time, heads))
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    # Below the logarithm of the smallest number exp is 0: sums of the clipped values stay finite.
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    log_decay = jnp.maximum(log_decay.astype(dtype), math.log(smallest))
    arrays = (q_BTHK, k_BTHK, v_BTHV, log_decay)
    if direction == "anticausal":
        arrays = tuple(jnp.flip(x, 1) for x in arrays)
        segment_ids_BT = None if segment_ids_BT is None else jnp.flip(segment_ids_BT, 1)
    o, state = _causal(*arrays, initial_state.astype(dtype), segment_ids_BT, form, chunk_size)
    if direction == "anticausal":
        o = jnp.flip(o, 1)
    return o.astype(v_BTHV.dtype), state


def _check(q, k, v, log_decay, direction, form, initial_state):
    if direction not in ("causal", "anticausal"):
        raise ValueError(f"direction is {direction!r}; choose causal or anticausal")
    if form not in recurrence.FORMS:
        raise ValueError(f"form is {form!r}; choose one of {', '.join(recurrence.FORMS)}")
    if k.shape != q.shape or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit")
    batch, _, heads, width = q.shape
    gates = (q.shape[2:3], q.shape[:3], q.shape)
    if log_decay.shape not in gates:
        raise ValueError(f"log_decay is {log_decay.shape}, not one of {gates}")
    if initial_state is not None and initial_state.shape != (batch, heads, width, v.shape[-1]):
        raise ValueError(
            f"initial_state is {initial_state.shape}, not {(batch, heads, width, v.shape[-1])}"
        )


def _causal(q, k, v, log_decay, state, segment_ids_BT, form, chunk_size):
    if form == "auto":
        form = "recurrent" if q.shape[1] == 1 else "chunk"
    starts = None
    if segment_ids_BT is not None:
        # The decay of a segment's first token acts on a state that is dropped: any value will do.
        starts = segments.starts(segment_ids_BT)[..., None, None]
        log_decay = jnp.where(starts, 0, log_decay)
    if form == "chunk":
        return _chunk_form(q, k, v, log_decay, state, segment_ids_BT, chunk_size)
    if form == "parallel":
        return _parallel(q, k, v, log_decay, state, segment_ids_BT)
    retention = jnp.exp(log_decay)
    if starts is not None:
        retention = jnp.where(starts, 0, retention)
    scan = recurrence.recurrent if form == "recurrent" else recurrence.associative
    return scan(q, k, v, retention[..., None], state)


def _parallel(q, k, v, log_decay, state, segment_ids_BT):
    """The masked quadratic form: all differences of the summed logarithms, masked before exp."""
    dtype = state.dtype
    batch, time = q.shape[:2]
    run_BT = jnp.zeros((batch, time), jnp.int32)
    if segment_ids_BT is not None:
        run_BT = segments.run_index(segment_ids_BT)
    visible_BTS = run_BT[:, :, None] == run_BT[:, None]
    visible_BTS &= jnp.tril(jnp.ones((time, time), bool))
    # b_t within each segment: no gradient, not even a rounding error, crosses to another one.
    sums = jnp.einsum(
        "bts,bshk->bthk", visible_BTS.astype(dtype), log_decay, precision=lax.Precision.HIGHEST
    )
    visible = visible_BTS[:, None, ..., None]
    sums_BHTK = jnp.moveaxis(sums, 2, 1)
    difference = sums_BHTK[:, :, :, None] - sums_BHTK[:, :, None]
    decay_BHTSK = jnp.exp(jnp.where(visible, difference, -jnp.inf))
    if decay_BHTSK.shape[-1] == 1:
        weights = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=dtype)
        weights *= decay_BHTSK[..., 0]
    else:
        weights = jnp.einsum("bthk,bshk,bhtsk->bhts", q.astype(dtype), k, decay_BHTSK)
    o = jnp.einsum("bhts,bshv->bthv", weights, v, preferred_element_type=dtype)
    first, last = (run_BT == 0)[..., None, None], (run_BT == run_BT[:, -1:])[..., None, None]
    q_first = jnp.where(first, q * jnp.exp(sums), 0)
    o += jnp.einsum("bthk,bhkv->bthv", q_first, state)
    k_last = k * jnp.moveaxis(decay_BHTSK[:, :, -1], 1, 2)
    carried = jnp.where(last[:, 0], jnp.exp(sums[:, -1]), 0)
    state = carried[..., None] * state + jnp.einsum("bthk,bthv->bhkv", k_last, v.astype(dtype))
    return o, state


# The chunk form.  Time is cut into blocks of G chunks of C tokens; one loop runs over the blocks.
# Within a chunk, with b_t the sum of log a up to and including token t, the decays are
#
#     pair  exp(b_i - b_j) from key j to query i >= j        (weights A, masked before exp)
#     read  exp(b_i)       from the entering state S to query i
#     reach exp(b_C - b_j) from key j to the end of the chunk
#     total exp(b_C)       from the entering state to the leaving one
#
#     o = A v + (read Q) S              S' = total S + (reach K)^T v
#
# and, given G = dL/do and R = dL/dS', with dA = G v^T times the pair decays,
#
#     dQ = dA K + read (G S^T)          dv = A^T G + (reach K) R
#     dK = dA^T Q + reach (v R^T)       dS = total R + (read Q)^T G
#
# The gradient of log a_t is the sum of the gradients of all exponents that contain it: pairs with
# j < t <= i, reads with t <= i, keys j < t that reach the end, and the total.  Only terms that do
# depend on a_t are summed (Q dQ - K dK summed over all later tokens is equal to it, and loses all
# digits to cancellation where decays are strong).
#
# A scalar gate has one C x C matrix of pair decays.  With a vector gate A_ij is the sum over the
# features of q_i k_j exp(b_i - b_j), which must not be factored as (q_i exp(b_i)) (k_j exp(-b_j)):
# the second factor overflows.  It is split in halves instead: for a query in the right half of a
# range and a key in the left half, with r = b at the end of the left half,
#
#     A_ij = (q_i exp(b_i - r))^T (k_j exp(r - b_j))         both exponents <= 0
#
# is a matrix product for each of log2(C) sizes of the halves; only A_ii = q_i^T k_i is left over.


def _chunk_form(q, k, v, log_decay, state, segment_ids_BT, chunk_size):
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
    dtype = state.dtype
    count = q.shape[1] // block
    gates = _Scalar if log_decay.shape[-1] == 1 else _Vector

    def body(n, carry):
        state, o, states = carry
        states = states.at[n].set(state)
        q_n, k_n, v_n, log_decay_n = (read(x, n, chunk, block) for x in (q, k, v, log_decay))
        masks = Masks.of_block(run_BT, n, chunk, block, dtype)
        gate = gates(log_decay_n, masks)
        entering, state = _states(masks.reaches(_scaled(k_n, gate.reach)), v_n, state, gate, masks)
        o_n = matmul(gate.weights(q_n, k_n), v_n, dtype)
        o_n += matmul(masks.reads(_scaled(q_n, gate.read)), entering, dtype)
        return state, write(o, o_n, n), states

    carry = (state, jnp.zeros(v.shape, v.dtype), jnp.zeros((count, *state.shape), dtype))
    state, o, states = lax.fori_loop(0, count, body, carry)
    return (o, state), (q, k, v, log_decay, run_BT, states)


def _chunked_backward(chunk, block, residuals, cotangents):
    q, k, v, log_decay, run_BT, states = residuals
    do, dstate = cotangents
    dtype = states.dtype
    count = states.shape[0]
    gates = _Scalar if log_decay.shape[-1] == 1 else _Vector

    def body(i, carry):
        dstate, dq, dk, dv, dlog_decay = carry
        n = count - 1 - i
        q_n, k_n, v_n, g_n = (read(x, n, chunk, block) for x in (q, k, v, do))
        masks = Masks.of_block(run_BT, n, chunk, block, dtype)
        gate = gates(read(log_decay, n, chunk, block), masks)
        k_reach = masks.reaches(_scaled(k_n, gate.reach))
        q_read = masks.reads(_scaled(q_n, gate.read))
        entering, _ = _states(k_reach, v_n, states[n], gate, masks)
        leaving, dstate = _state_gradients(q_read, g_n, dstate, gate, masks)
        weights, dq_n, dk_n, db = gate.gradients(q_n, k_n, matmul(g_n, v_n.mT, dtype))
        dq_read = masks.reads(matmul(g_n, entering.mT, dtype) * gate.read)
        dk_reach = masks.reaches(matmul(v_n, leaving.mT, dtype) * gate.reach)
        dv_n = matmul(weights.mT, g_n, dtype) + matmul(k_reach, leaving, dtype)
        dlog_decay_n = gate.log_decay_gradients(
            db, q_n * dq_read, k_n * dk_reach, jnp.sum(entering * leaving, axis=-1)
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


def _scaled(x, decay):
    """Multiplied in the accumulation dtype, as an operand again in that of x."""
    return (x * decay).astype(x.dtype)


def _states(k_reach, v, state, gate, masks):
    """The states entering the chunks of a block, and the one leaving it."""
    updates = matmul(k_reach.mT, v, state.dtype)
    total = _totals(gate, masks)
    states = [state]
    for g in range(updates.shape[2]):
        states.append(total[:, :, g] * states[-1] + updates[:, :, g])
    return jnp.stack(states[:-1], axis=2), states[-1]


def _state_gradients(q_read, g, dstate, gate, masks):
    """The same sum in reverse: gradients of the states leaving the chunks, and of the first one."""
    reads = matmul(q_read.mT, g, dstate.dtype)
    total = _totals(gate, masks)
    gradients = [dstate]
    for n in reversed(range(reads.shape[2])):
        gradients.append(total[:, :, n] * gradients[-1] + reads[:, :, n])
    return jnp.stack(gradients[-2::-1], axis=2), gradients[-1]


def _totals(gate, masks):
    """Decay of a state over each chunk (B H G K 1), 0 where a segment starts in it."""
    same = jnp.diagonal(masks.carry, offset=-1, axis1=-2, axis2=-1)
    return gate.total[..., 0, :, None] * same[..., None, None]


class _Gate:
    """The decays of a block whose log decays are (B H G C K), or (B H G C 1) for a scalar.

    Differences of sums lose digits where a strong decay is followed by weak ones.  So the sum is
    kept in two parts, one of multiples of 1/256, which is exact, and a small remainder.
    """

    def __init__(self, log_decay, masks):
        self.masks = masks
        coarse = jnp.round(log_decay * 256) / 256
        parts = jnp.concatenate([coarse, log_decay - coarse], axis=-1)
        earlier = jnp.tril(jnp.ones((log_decay.shape[-2],) * 2, bool))
        self.coarse, self.fine = jnp.split(_sums(earlier, parts), 2, axis=-1)
        self.read = jnp.exp(self.coarse + self.fine)
        self.reach = jnp.exp(self._until(self.coarse[..., -1:, :], self.fine[..., -1:, :]))
        self.total = self.read[..., -1:, :]

    def _until(self, coarse, fine):
        return (coarse - self.coarse) + (fine - self.fine)

    def log_decay_gradients(self, db, dreach, dtotal):
        """For the gradients of b_t by pairs and reads, of keys' reaching and of the total."""
        pairs = self.masks.pairs
        through = (dtotal * self.total[..., 0, :])[..., None, :]
        through = self.masks.reaches(self.masks.reads(through))
        return _sums(pairs.mT, db) + _sums(jnp.tril(pairs, -1), dreach) + through


def _sums(terms, x):
    """Sums over the chosen tokens of a chunk, in full precision on any platform."""
    terms = jnp.broadcast_to(terms.astype(x.dtype), (*x.shape[:-2], *terms.shape[-2:]))
    return jnp.matmul(terms, x, precision=lax.Precision.HIGHEST)


class _Scalar(_Gate):
    """One matrix of pair decays."""

    def __init__(self, log_decay, masks):
        super().__init__(log_decay, masks)
        until = self._until(self.coarse.mT, self.fine.mT)
        self.pairs = jnp.exp(jnp.where(masks.pairs, -until, -jnp.inf))

    def weights(self, q, k):
        return self.pairs * matmul(q, k.mT, self.pairs.dtype)

    def gradients(self, q, k, dweights):
        """Weights, and the gradients of q, k and b_t for that of the weights."""
        dtype = self.pairs.dtype
        weights = self.weights(q, k)
        terms = jnp.tril(weights * dweights, -1)
        db = jnp.sum(terms, axis=-1) - jnp.sum(terms, axis=-2)
        dweights = self.pairs * dweights
        dq, dk = matmul(dweights, k, dtype), matmul(dweights.mT, q, dtype)
        return weights, dq, dk, db[..., None]

    def log_decay_gradients(self, db, dread, dreach, dtotal):
        db, dreach, dtotal = (
            db + jnp.sum(dread, axis=-1, keepdims=True),
            jnp.sum(dreach, axis=-1, keepdims=True),
            jnp.sum(dtotal, axis=-1, keepdims=True),
        )
        return super().log_decay_gradients(db, dreach, dtotal)


class _Vector(_Gate):
    """Pair decays by halving; C is a power of two."""

    def __init__(self, log_decay, masks):
        super().__init__(log_decay, masks)
        chunk = log_decay.shape[-2]
        halves = [1 << n for n in range(chunk.bit_length() - 1)]
        self.levels = [self._level(half) for half in halves]

    def _level(self, half):
        """Decays (.., C / 2h, 2, h, K): to right tokens from, and by left ones to the middle."""
        coarse, fine = _halves(self.coarse, half), _halves(self.fine, half)
        middle = (..., slice(0, 1), slice(-1, None), slice(None))
        since = (coarse - coarse[middle]) + (fine - fine[middle])
        return jnp.exp(jnp.where(_is_right(since), since, -since))

    def _operands(self, q, k):
        """For each size of the halves: queries of the right ones and keys of the left ones."""
        for decay in self.levels:
            half = decay.shape[-2]
            x = jnp.where(_is_right(decay), _halves(q, half), _halves(k, half))
            x = _scaled(x, decay)
            yield x[..., 1, :, :], x[..., 0, :, :], decay

    def weights(self, q, k):
        dtype = self.read.dtype
        a = jnp.sum(q.astype(dtype) * k, axis=-1)[..., None, None]
        for right, left, _ in self._operands(q, k):
            a = _join(a, matmul(right, left.mT, dtype))
        return self.masks.within(a[..., 0, :, :])

    def gradients(self, q, k, dweights):
        """Weights, and the gradients of q, k and b_t for that of the weights."""
        dtype = self.read.dtype
        a = jnp.sum(q.astype(dtype) * k, axis=-1)[..., None, None]
        dq = dk = jnp.zeros(q.shape, dtype)
        *parts, diagonal = _parts(self.masks.within(dweights), len(self.levels))
        for (right, left, decay), da in zip(self._operands(q, k), reversed(parts), strict=True):
            a = _join(a, matmul(right, left.mT, dtype))
            dx = jnp.stack([matmul(da.mT, right, dtype), matmul(da, left, dtype)], axis=-3) * decay
            dq += jnp.where(_is_right(dx), dx, 0).reshape(q.shape)
            dk += jnp.where(_is_right(dx), 0, dx).reshape(k.shape)
        db = q * dq - k * dk
        diagonal = diagonal[..., 0]
        return self.masks.within(a[..., 0, :, :]), dq + diagonal * k, dk + diagonal * q, db

    def log_decay_gradients(self, db, dread, dreach, dtotal):
        return super().log_decay_gradients(db + dread, dreach, dtotal)


def _halves(x, half):
    """(.., C, K) as (.., C / 2h, 2, h, K)."""
    return x.reshape(*x.shape[:-2], -1, 2, half, x.shape[-1])


def _is_right(x):
    return lax.broadcasted_iota(jnp.int32, x.shape[-4:], 1) == 1


def _join(a, low):
    """Weights within halves (.., N, h, h) and from left to right ones: (.., N / 2, 2 h, 2 h)."""
    h = low.shape[-1]
    a = a.reshape(*low.shape[:-2], 2, h, h)
    top = jnp.concatenate([a[..., 0, :, :], jnp.zeros_like(low)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([low, a[..., 1, :, :]], axis=-1)], axis=-2)


def _parts(a, levels):
    """The transpose of the joins: what each of them has put in, the largest first."""
    a = a[..., None, :, :]
    parts = []
    for _ in range(levels):
        h = a.shape[-1] // 2
        parts.append(a[..., h:, :h])
        a = jnp.stack([a[..., :h, :h], a[..., h:, h:]], axis=-3)
        a = a.reshape(*a.shape[:-4], -1, h, h)
    return [*parts, a]
