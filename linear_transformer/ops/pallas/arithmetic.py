"""Arithmetic of a chunk inside a TPU kernel: 2-D arrays, and operations that the compiler has.

The compiler has no cumulative sum, no triangular solve, no gather and no transpose of a single
column.  Sums over earlier tokens are therefore products with triangular matrices, and a row becomes
a column by a diagonal matrix.  Everything here is differentiated inside the backward kernels.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.ops.custom_vjp import custom_vjp

ROWS_BY_COLUMNS = (1, 0)  # a @ b
ROWS_BY_ROWS = (1, 1)  # a @ b^T
COLUMNS_BY_COLUMNS = (0, 0)  # a^T @ b


@custom_vjp(2, 3, 4)
def matmul(
    a: Array,
    b: Array,
    narrow: jnp.dtype,
    contract: tuple[int, int] = ROWS_BY_COLUMNS,
    precision: lax.Precision | None = None,
) -> Array:
    """Contracts axis contract[0] of a with axis contract[1] of b, operands rounded to `narrow`.

    Sums and results, and the gradients of the operands, have the accumulation dtype of a and b.
    The gradient of a product is a product of the same kind; nothing is transposed in memory.
    """
    return _dot(a, b, narrow, contract, precision)


def _matmul_forward(a, b, narrow, contract, precision):
    return _dot(a, b, narrow, contract, precision), (a, b)


def _matmul_backward(narrow, contract, precision, operands, g):
    a, b = operands
    i, j = contract

    def dot(x, y, contract):
        return _dot(x, y, narrow, contract, precision)

    da = dot(g, b, (1, 1 - j)) if i else dot(b, g, (1 - j, 1))
    db = dot(g, a, (0, 1 - i)) if j else dot(a, g, (1 - i, 0))
    return da, db


matmul.defvjp(_matmul_forward, _matmul_backward)


def unrounded(a: Array, b: Array, contract: tuple[int, int] = ROWS_BY_COLUMNS) -> Array:
    """Computes `matmul` with all digits of the operands, forward and backward."""
    return matmul(a, b, a.dtype, contract, lax.Precision.HIGHEST)


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
    """Computes a @ b with all digits of the operands, for sums of log decays and inverses."""
    return _dot(a, b, a.dtype, ROWS_BY_COLUMNS, lax.Precision.HIGHEST)


def later_or_same(chunk: int) -> Array:
    """Mask (C, C) of the pairs in which row i is not before column j."""
    return _index(chunk, 0) >= _index(chunk, 1)


def strictly_later(chunk: int) -> Array:
    return _index(chunk, 0) > _index(chunk, 1)


def _index(chunk, axis):
    return lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis)


def column(row_1C: Array) -> Array:
    """Reshapes (1, C) to (C, 1)."""
    chunk = row_1C.shape[1]
    return jnp.sum(
        jnp.where(_index(chunk, 0) == _index(chunk, 1), row_1C, 0), axis=1, keepdims=True
    )


def row(column_C1: Array) -> Array:
    """Reshapes (C, 1) to (1, C)."""
    chunk = column_C1.shape[0]
    return jnp.sum(
        jnp.where(_index(chunk, 0) == _index(chunk, 1), column_C1, 0), axis=0, keepdims=True
    )


def any_of(x: Array, axis: int | None = None) -> Array:
    """Returns whether x is True along an axis, or anywhere, with both axes kept."""
    ones = jnp.where(x, 1.0, 0.0)  # the compiler has maxima of numbers only
    for reduced in (1, 0) if axis is None else (axis,):
        ones = jnp.max(ones, axis=reduced, keepdims=True)
    return ones > 0


def stop_non_finite_gradient(o_CV: Array) -> Array:
    """Computes `ops.non_finite.stop_non_finite_gradient` for the rows of a chunk.

    Outside of the kernel it would store the masked gradients of all tokens.
    """
    return jnp.where(any_of(~jnp.isfinite(o_CV), axis=1), lax.stop_gradient(o_CV), o_CV)


class Masks(NamedTuple):
    """Masks of the terms that a chunk keeps.

    Segment starts are counted from the token before the chunk, which belongs to the segment of the
    entering state: 0, 0, 1, 1, 2 ...; None without segments.
    """

    runs_1C: Float[Array, "1 C"] | None
    tokens: Array | None  # number of tokens of the chunk that exist; None for all

    def within(self, weights_CC: Array, pairs_CC: Array) -> Array:
        """Keeps the weights of the given pairs if both tokens are in one segment."""
        if self.runs_1C is not None:
            pairs_CC &= column(self.runs_1C) == self.runs_1C
        return jnp.where(pairs_CC, weights_CC, 0)

    @property
    def packed(self) -> bool:
        return self.runs_1C is not None

    def reads(self, rows_C: Array) -> Array:
        """Keeps the rows of tokens in the segment of the entering state."""
        return rows_C if self.runs_1C is None else _in_segment(self.runs_1C, 0, rows_C)

    def reaches(self, rows_C: Array) -> Array:
        """Keeps the rows of tokens in the segment of the leaving state."""
        if self.runs_1C is None:
            return rows_C
        return _in_segment(self.runs_1C, _last(self.runs_1C), rows_C)

    def carried(self, state: Array) -> Array:
        """Keeps the entering state if no segment starts in the chunk."""
        return state if self.runs_1C is None else jnp.where(_last(self.runs_1C) == 0, state, 0)

    def exist(self, x_CK: Array) -> Array:
        """Sets rows beyond the end of the sequence to 0; their values are undefined."""
        if self.tokens is None:
            return x_CK
        return jnp.where(lax.broadcasted_iota(jnp.int32, x_CK.shape, 0) < self.tokens, x_CK, 0)


def _last(runs_1C):
    return jnp.max(runs_1C, axis=1, keepdims=True)


def _in_segment(runs_1C, run, rows_C):
    return jnp.where(jnp.broadcast_to(column(runs_1C), rows_C.shape) == run, rows_C, 0)
