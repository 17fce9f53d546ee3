"""Decays of a block of chunks, and their gradients: one matrix of pairs, or one per feature.

Within a chunk, with b_t the sum of log a up to and including token t, the decays are

    pair  exp(b_i - b_j) from key j to query i >= j        (weights A, masked before exp)
    read  exp(b_i)       from the entering state S to query i
    reach exp(b_C - b_j) from key j to the end of the chunk
    total exp(b_C)       from the entering state to the leaving one

The gradient of log a_t is the sum of the gradients of all exponents that contain it: pairs with
j < t <= i, reads with t <= i, keys j < t that reach the end, and the total.  Exactly these terms
are summed.  Differences of larger sums (Q dQ - K dK over all later tokens, or the rows minus the
columns of the pairs) are equal to it, but lose all digits to cancellation where decays are strong.

A scalar gate has one C x C matrix of pair decays.  With a vector gate A_ij is the sum over the
features of q_i k_j exp(b_i - b_j), which must not be factored as (q_i exp(b_i)) (k_j exp(-b_j)):
the second factor overflows.  Each range of tokens is split in halves instead: for a query in the
right half and a key in the left half, with r = b at the end of the left half,

    A_ij = (q_i exp(b_i - r))^T (k_j exp(r - b_j))         both exponents <= 0

is a matrix product for each of the log2(C) sizes of halves; only A_ii = q_i^T k_i remains.  A gate
of the value features v uses the same halves: with any weights W of the pairs, the outputs

    o_i = sum_j W_ij exp(b_i - b_j) v_j = exp(b_i - r) * sum_j W_ij (exp(r - b_j) * v_j) + ...

are the gradient of q in sum_ij W_ij A_ij for k = v.  Its gradients of k and log a, with q = dL/do,
are hence the gradients of v and log a in L, and its A_ij are the gradients of W_ij.
"""

import copy

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops.blocks import Masks, matmul


def make_gate(
    log_decay: Float[Array, "B H G C _"], masks: Masks, narrow: jnp.dtype
) -> "ScalarGate | VectorGate":
    """Makes a scalar gate if the last axis is 1, else a vector gate.

    Operands of matrix products are rounded to `narrow` after they are multiplied by decays, not
    before.
    """
    return (ScalarGate if log_decay.shape[-1] == 1 else VectorGate)(log_decay, masks, narrow)


def totals(gate: "_Gate") -> Float[Array, "B H G _ 1"]:
    """Decay of a state over each chunk."""
    return gate.total[..., 0, :, None]


class _Gate:
    """Decays of a block, from log decays (B H G C K), or (B H G C 1) for a scalar gate.

    Differences of sums lose digits where a strong decay is followed by weak ones.  The sum is
    therefore kept in two parts: multiples of 1/256, which add up exactly, and a small remainder.
    """

    def __init__(self, log_decay, masks, narrow):
        self.masks, self.narrow = masks, narrow
        coarse = jnp.round(log_decay * 256) / 256
        parts = jnp.concatenate([coarse, log_decay - coarse], axis=-1)
        # Sums within each segment: no bit of one segment depends on another segment.
        self.coarse, self.fine = jnp.split(_sums(masks.pairs, parts), 2, axis=-1)
        self.read = jnp.exp(self.coarse + self.fine)
        self.reach = jnp.exp(self._until(self.coarse[..., -1:, :], self.fine[..., -1:, :]))
        self.total = self.read[..., -1:, :]

    def rounded_to(self, narrow):
        """Returns the same decays for operands of another type."""
        gate = copy.copy(self)
        gate.narrow = narrow
        return gate

    def _until(self, coarse, fine):
        return (coarse - self.coarse) + (fine - self.fine)

    def log_decay_gradients(self, dpairs, dread, dreach, dtotal):
        """Computes the gradient of log a from the gradients by pairs, read, reach and total.

        Args:
          dpairs: gradient of log a by the pairs alone.
          dread, dreach: gradients of the exponents of `read` and `reach`, 0 where a mask drops the
            term.
          dtotal: gradient of `total`.
        """
        chunk = dread.shape[-2]
        through = (dtotal * self.total[..., 0, :])[..., None, :]
        through = self.masks.reaches(self.masks.reads(jnp.broadcast_to(through, dread.shape)))
        dread = self.masks.reads(_sums(_later_or_same(chunk), dread))
        dreach = self.masks.reaches(_sums(_earlier(chunk), dreach))
        return dpairs + dread + dreach + through


def _later_or_same(chunk):
    return jnp.triu(jnp.ones((chunk, chunk), bool))


def _earlier(chunk):
    return jnp.tril(jnp.ones((chunk, chunk), bool), -1)


def _sums(terms, x):
    """Sums over the selected tokens of a chunk, in full precision on every platform."""
    terms, exact = terms.astype(x.dtype), lax.Precision.HIGHEST
    if x.shape[-1] <= 2 and terms.ndim == 2:  # no copy of `terms` for every head and chunk
        return jnp.matmul(x.mT, terms.T, precision=exact).mT
    if x.shape[-1] <= 2 and terms.ndim == 5:
        return jnp.einsum("bgts,bhgsk->bhgtk", terms[:, 0], x, precision=exact)
    terms = jnp.broadcast_to(terms, (*x.shape[:-2], *terms.shape[-2:]))
    return jnp.matmul(terms, x, precision=exact)


class ScalarGate(_Gate):
    """Gate with one decay per token: one matrix of pair decays."""

    def __init__(self, log_decay, masks, narrow):
        super().__init__(log_decay, masks, narrow)
        until = self._until(self.coarse.mT, self.fine.mT)
        self.pairs = jnp.exp(jnp.where(masks.pairs, -until, -jnp.inf))

    def weights(self, q, k):
        return self.pairs * matmul(q, k.mT, self.narrow, self.pairs.dtype)

    def gradients(self, q, k, dweights):
        """Returns the weights, and the gradients of q, k and log a from `dweights`."""
        dtype, chunk = self.pairs.dtype, q.shape[-2]
        weights = self.weights(q, k)
        # a_t is in the pairs (i, j) with j < t <= i: sums over j first, then over i.
        before = _earlier(chunk).T.astype(dtype)
        earlier = jnp.matmul(weights * dweights, before, precision=lax.Precision.HIGHEST)
        dlog_decay = jnp.sum(jnp.where(_later_or_same(chunk).T, earlier, 0), axis=-2)[..., None]
        dweights = self.pairs * dweights
        dq = matmul(dweights, k, self.narrow, dtype)
        dk = matmul(dweights.mT, q, self.narrow, dtype)
        return weights, dq, dk, dlog_decay

    def log_decay_gradients(self, dpairs, dread, dreach, dtotal):
        sums = (jnp.sum(x, axis=-1, keepdims=True) for x in (dread, dreach, dtotal))
        return super().log_decay_gradients(dpairs, *sums)


class VectorGate(_Gate):
    """Gate with one decay per feature: pair decays by halving; C is a power of two."""

    def __init__(self, log_decay, masks, narrow):
        super().__init__(log_decay, masks, narrow)
        chunk = log_decay.shape[-2]
        halves = [1 << n for n in range(chunk.bit_length() - 1)]
        self.levels = [self._level(half) for half in halves]

    def _level(self, half):
        """Decays (.., C / 2h, 2, h, K): left tokens to the middle, the middle to right tokens."""
        coarse, fine = _halves(self.coarse, half), _halves(self.fine, half)
        middle = (..., slice(0, 1), slice(-1, None), slice(None))
        since = (coarse - coarse[middle]) + (fine - fine[middle])
        exponents = jnp.where(_is_right(since), since, -since)
        if self.masks.read is not None:  # pairs across segments may have exponents above 0
            exponents = jnp.minimum(exponents, 0)
        return jnp.exp(exponents)

    def _operands(self, q, k):
        """Yields for each size of halves the right queries, left keys and decays."""
        for decay in self.levels:
            half = decay.shape[-2]
            x = jnp.where(_is_right(decay), _halves(q, half), _halves(k, half)) * decay
            x = x.astype(self.narrow)
            yield x[..., 1, :, :], x[..., 0, :, :], decay

    def weights(self, q, k):
        dtype = self.read.dtype
        a = jnp.sum(q.astype(dtype) * k, axis=-1)[..., None, None]
        for right, left, _ in self._operands(q, k):
            a = _join(a, matmul(right, left.mT, self.narrow, dtype))
        return self.masks.within(a[..., 0, :, :])

    def outputs(self, weights, v):
        """Sums over j of weights_ij exp(b_i - b_j) v_j, for a gate of the value features."""
        *parts, diagonal = _parts(weights, len(self.levels))
        o = diagonal[..., 0] * v
        for decay, part in zip(self.levels, reversed(parts), strict=True):
            half = decay.shape[-2]
            left = _halves(v, half)[..., 0, :, :] * decay[..., 0, :, :]
            right = matmul(part, left, self.narrow, o.dtype) * decay[..., 1, :, :]
            o += jnp.stack([jnp.zeros_like(right), right], axis=-3).reshape(o.shape)
        return o

    def gradients(self, q, k, dweights):
        """Returns the weights, and the gradients of q, k and log a from `dweights`."""
        dtype = self.read.dtype
        a = jnp.sum(q.astype(dtype) * k, axis=-1)[..., None, None]
        dq = dk = dlog_decay = jnp.zeros(q.shape, dtype)
        *parts, diagonal = _parts(self.masks.within(dweights), len(self.levels))
        for (right, left, decay), da in zip(self._operands(q, k), reversed(parts), strict=True):
            half = decay.shape[-2]
            a = _join(a, matmul(right, left.mT, self.narrow, dtype))
            dleft = matmul(da.mT, right, self.narrow, dtype)
            dright = matmul(da, left, self.narrow, dtype)
            dx = jnp.stack([dleft, dright], axis=-3) * decay
            is_right = _is_right(dx)
            # a_t is in the decays from the middle to i >= t, and from j < t to the middle.
            reaching = jnp.where(is_right, _halves(q, half), _halves(k, half)) * dx
            between = jnp.stack([_earlier(half), _later_or_same(half)])
            dlog_decay += _sums(between, reaching).reshape(q.shape)
            dq += jnp.where(is_right, dx, 0).reshape(q.shape)
            dk += jnp.where(is_right, 0, dx).reshape(k.shape)
        diagonal = diagonal[..., 0]
        weights = self.masks.within(a[..., 0, :, :])
        return weights, dq + diagonal * k, dk + diagonal * q, dlog_decay


def _halves(x, half):
    """Reshapes (.., C, K) to (.., C / 2h, 2, h, K)."""
    return x.reshape(*x.shape[:-2], -1, 2, half, x.shape[-1])


def _is_right(x):
    return lax.broadcasted_iota(jnp.int32, x.shape[-4:], 1) == 1


def _join(a, low):
    """Joins weights within halves (.., N, h, h) and between them to (.., N / 2, 2 h, 2 h)."""
    h = low.shape[-1]
    a = a.reshape(*low.shape[:-2], 2, h, h)
    top = jnp.concatenate([a[..., 0, :, :], jnp.zeros_like(low)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([low, a[..., 1, :, :]], axis=-1)], axis=-2)


def _parts(a, levels):
    """Transpose of all joins: the weights between halves, largest first, and the diagonal."""
    a = a[..., None, :, :]
    parts = []
    for _ in range(levels):
        h = a.shape[-1] // 2
        parts.append(a[..., h:, :h])
        a = jnp.stack([a[..., :h, :h], a[..., h:, h:]], axis=-3)
        a = a.reshape(*a.shape[:-4], -1, h, h)
    return [*parts, a]
