"""Decays of a chunk inside a kernel: one matrix of pairs, or one per feature.

The decays are as in `ops.gates`; each exponent is the sum of the log decays of exactly the tokens
in between.  No difference of running sums is taken: nothing can overflow, no digit is lost where a
strong decay is followed by weak ones, and the gradient of a log decay is exactly the sum of the
gradients of the exponents that contain it.

A scalar gate has D_ij = sum of log a_t over j < t <= i, a product of two triangular matrices, one
of them times the row of log a.  With a vector gate the pairs are split by halving, as in
`ops.gates`: for each of log2(C) sizes, a query in the right half of a range and a key in the left
half meet at the middle, and the exponents are sums from the middle to either side.  From one size
to the next, the sums extend over the sibling half by adding its total.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops.custom_vjp import custom_vjp
from linear_transformer.ops.pallas.arithmetic import (
    ROWS_BY_ROWS,
    column,
    exact,
    later_or_same,
    matmul,
    strictly_later,
    unrounded,
)
from linear_transformer.ops.recurrence import clipped


class NoDecays:
    """Decays that are all 1, as `ScalarDecays` of zeros, without their arithmetic."""

    read = read_before = reach = total = 1.0

    def weights(self, q, k, narrow, *, before=False):
        return _products(q, k, narrow, before)


class ScalarDecays:
    """Decays from log decays (1, C); `read`, `reach` and `total` broadcast over the features."""

    def __init__(self, log_decay_1C: Float[Array, "1 C"]):
        self.log_decay = clipped(log_decay_1C)
        self.chunk = log_decay_1C.shape[1]
        self.read = jnp.exp(self._sums(later_or_same(self.chunk)))
        self.read_before = jnp.exp(self._sums(strictly_later(self.chunk)))
        self.reach = jnp.exp(self._sums(_strictly_earlier(self.chunk)))
        self.total = jnp.exp(jnp.sum(self.log_decay, axis=1, keepdims=True))

    def _sums(self, terms_CC):
        return jnp.sum(jnp.where(terms_CC, self.log_decay, 0), axis=1, keepdims=True)

    def weights(self, q, k, narrow, *, before=False):
        """Computes q_i^T (a_{j+1} ... a_i k_j), without a_i if `before`; undefined for j > i.

        `before` is for the read vectors of a delta rule.  Their weights enter the transition, so no
        operand is rounded to `narrow`.
        """
        last = strictly_later(self.chunk) if before else later_or_same(self.chunk)
        until = jnp.where(last, self.log_decay, 0)
        exponents = exact(until, strictly_later(self.chunk).astype(until.dtype))
        return jnp.exp(exponents) * _products(q, k, narrow, before)


class VectorDecays:
    """Decays from log decays (C, K); C is a power of two."""

    def __init__(self, log_decay_CK: Float[Array, "C K"]):
        log_decay = clipped(log_decay_CK)
        self.chunk = log_decay.shape[0]
        until, before, after = log_decay, jnp.zeros_like(log_decay), jnp.zeros_like(log_decay)
        self.levels = []  # for each size of the halves: sums up to a token, before it, after it
        half = 1
        while half < self.chunk:
            self.levels.append((half, until, before, after))
            total = until + after  # of a token's half, equal for all tokens of the half
            right = _in_right_half(log_decay.shape, half)
            sibling = jnp.where(right, shifted(total, half), shifted(total, -half))
            until = until + jnp.where(right, sibling, 0)
            before = before + jnp.where(right, sibling, 0)
            after = after + jnp.where(right, 0, sibling)
            half *= 2
        self.read, self.read_before, self.reach = (jnp.exp(x) for x in (until, before, after))
        self.total = column(jnp.exp(jnp.sum(log_decay, axis=0, keepdims=True)))

    def weights(self, q, k, narrow, *, before=False):
        """Computes weights as in `ScalarDecays`; the own key is not decayed, or 0 if `before`."""
        if before:
            weights = jnp.zeros((self.chunk, self.chunk), q.dtype)
        else:
            own = jnp.sum(q * k, axis=1, keepdims=True)
            same = later_or_same(self.chunk) ^ strictly_later(self.chunk)
            weights = jnp.where(same, own, 0)
        for half, until, strictly, after in self.levels:
            query = q * jnp.exp(strictly if before else until)
            pairs = _products(query, k * jnp.exp(after), narrow, before)
            weights = jnp.where(meet(self.chunk, half), pairs, weights)
        return weights


def _products(q, k, narrow, before):
    return unrounded(q, k, ROWS_BY_ROWS) if before else matmul(q, k, narrow, ROWS_BY_ROWS)


def _strictly_earlier(chunk):
    return jnp.logical_not(later_or_same(chunk))


def _in_right_half(shape, half):
    return lax.broadcasted_iota(jnp.int32, shape, 0) & half != 0


def meet(chunk, half):
    """Mask of pairs with the row in the right half and the column in the left half of a range."""
    i = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
    j = lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
    apart = i ^ j  # the highest bit in which i and j differ is the size of the halves
    return (i > j) & (apart >= half) & (apart < 2 * half)


@custom_vjp(1)
def shifted(x: Array, rows: int) -> Array:
    """Moves row i - rows to row i, cyclically."""
    cut = -rows % x.shape[0]
    return jnp.concatenate([x[cut:], x[:cut]], axis=0)


def _shifted_forward(x, rows):
    return shifted(x, rows), None


def _shifted_backward(rows, _, g):
    return (shifted(g, -rows),)


shifted.defvjp(_shifted_forward, _shifted_backward)
