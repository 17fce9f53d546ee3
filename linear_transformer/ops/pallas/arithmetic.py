"""Arithmetic of a chunk inside a TPU kernel: 2-D arrays, and operations that the compiler knows.

It knows no cumulative sum, no triangular solve, no gather and no transpose of a single column, so
sums over earlier tokens are products with triangles, and a row becomes a column by a diagonal.
Everything here is differentiated inside the backward kernels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

ROWS_BY_COLUMNS = (1, 0)  # a @ b
ROWS_BY_ROWS = (1, 1)  # a @ b^T
COLUMNS_BY_COLUMNS = (0, 0)  # a^T @ b


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(a: Array, b: Array, narrow: jnp.dtype, contract: tuple[int, int] = ROWS_BY_COLUMNS):
    """Product over axis contract[0] of a and contract[1] of b, operands rounded to `narrow`.

    Sums and results, and the gradients of the operands, have the accumulation dtype of a and b.
    The gradient of a product is a product of the same kind; nothing is transposed in memory.
    """
    return _dot(a, b, narrow, contract)


def _matmul_forward(a, b, narrow, contract):
    return _dot(a, b, narrow, contract), (a, b)


def _matmul_backward(narrow, contract, operands, g):
    a, b = operands
    i, j = contract
    da = _dot(g, b, narrow, (1, 1 - j)) if i else _dot(b, g, narrow, (1 - j, 1))
    db = _dot(g, a, narrow, (0, 1 - i)) if j else _dot(a, g, narrow, (1 - i, 0))
    return da, db


matmul.defvjp(_matmul_forward, _matmul_backward)


def _dot(a, b, narrow, contract, precision=None):
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(
        a.astype(narrow),
        b.astype(narrow),
        dimensions,
        precision=precision,
        preferred_element_type=a.dtype,
    )


def exact(a: Array, b: Array) -> Array:
    """a @ b with all digits of the operands: for sums of log decays, and for inverses."""
    return _dot(a, b, a.dtype, ROWS_BY_COLUMNS, lax.Precision.HIGHEST)


def later_or_same(chunk: int) -> Array:
    """(C, C): row i is not before column j."""
    return _index(chunk, 0) >= _index(chunk, 1)


def strictly_later(chunk: int) -> Array:
    return _index(chunk, 0) > _index(chunk, 1)


def _index(chunk, axis):
    return lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis)


def column(row_1C: Array) -> Array:
    """(1, C) as (C, 1)."""
    chunk = row_1C.shape[1]
    return jnp.sum(
        jnp.where(_index(chunk, 0) == _index(chunk, 1), row_1C, 0), axis=1, keepdims=True
    )


class Masks(NamedTuple):
    """Which terms a chunk keeps.

    Segment starts are counted from the token before the chunk, which belongs to the segment of the
    entering state: 0, 0, 1, 1, 2 ...; None without segments.
    """

    runs_1C: Float[Array, "1 C"] | None
    tokens: Array | None  # number of tokens of the chunk that exist; None for all

    def within(self, weights_CC: Array, pairs_CC: Array) -> Array:
        """Weights of the chosen pairs, those of other segments dropped."""
        if self.runs_1C is not None:
            pairs_CC &= column(self.runs_1C) == self.runs_1C
        return jnp.where(pairs_CC, weights_CC, 0)

    def reads(self, queries_CK: Array) -> Array:
        """Queries in the segment of the entering state."""
        return queries_CK if self.runs_1C is None else self._in_segment(0, queries_CK)

    def reaches(self, keys_CK: Array) -> Array:
        """Keys in the segment of the leaving state."""
        return keys_CK if self.runs_1C is None else self._in_segment(self._last(), keys_CK)

    def carried(self, state: Array) -> Array:
        """The entering state, if its segment goes on to the end of the chunk."""
        return state if self.runs_1C is None else jnp.where(self._last() == 0, state, 0)

    def exist(self, x_CK: Array) -> Array:
        """Zeros in place of what is read beyond the end of the sequence, which may be anything."""
        if self.tokens is None:
            return x_CK
        return jnp.where(lax.broadcasted_iota(jnp.int32, x_CK.shape, 0) < self.tokens, x_CK, 0)

    def _last(self):
        return jnp.max(self.runs_1C, axis=1, keepdims=True)

    def _in_segment(self, run, x_CK):
        return jnp.where(jnp.broadcast_to(column(self.runs_1C), x_CK.shape) == run, x_CK, 0)
