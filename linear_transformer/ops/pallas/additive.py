"""Additive linear attention as a TPU kernel: equations 10-12 of `ops.additive`, chunk by chunk.

With A = (phi(Q) phi(K)^T) masked to j <= i and the entering sums S (K x V) and z (1 x K),

    o = (A v + Q S) / (A 1 + Q z^T + epsilon)         S' = S + K^T v         z' = z + 1^T K

The normaliser is a row of its own: one more column of S would take another 128 lanes of VMEM and of
the matrix unit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from linear_transformer.ops.custom_vjp import custom_vjp
from linear_transformer.ops.feature_maps import FeatureMap
from linear_transformer.ops.pallas.arithmetic import (
    COLUMNS_BY_COLUMNS,
    ROWS_BY_ROWS,
    Masks,
    later_or_same,
    matmul,
    stop_non_finite_gradient,
)
from linear_transformer.ops.pallas.chunk_scan import Arrays, chunk_scan
from linear_transformer.types import FeatureState, Keys, Outputs, Queries, SegmentIds, Values

CHUNK_SIZE = 128  # the width of the matrix unit


def pallas_form(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    state_BHMW: FeatureState,
    segment_ids_BT: SegmentIds | None,
    feature_map: FeatureMap | None,
    normalize: bool,
    epsilon: float,
    chunk_size: int | None,
) -> tuple[Outputs, FeatureState]:
    """Computes causal `ops.additive.linear_attention`; rounds chunks up to a power of two."""
    if feature_map is not None:
        program, features = jax.make_jaxpr(feature_map, return_shape=True)(q_BTHK)
        is_same = (features.shape, features.dtype) == (q_BTHK.shape, q_BTHK.dtype)
        mixed = not q_BTHK.dtype == k_BTHK.dtype == v_BTHV.dtype
        # A kernel has no arrays but its operands, its states are as wide as the keys, and it holds
        # tokens in fp32: a map that holds arrays, changes the width or the dtype, or must round
        # features to another dtype than products, is applied before.
        if program.consts or not is_same or mixed:
            q_BTHK, k_BTHK, feature_map = feature_map(q_BTHK), feature_map(k_BTHK), None
    state = (state_BHMW,)
    if normalize:
        state = (state_BHMW[..., :-1], state_BHMW[..., None, :, -1])
    chunk = chunk_size or CHUNK_SIZE
    narrow = jnp.result_type(q_BTHK, k_BTHK, v_BTHV)
    step = _Step(feature_map, normalize, epsilon, narrow)
    o, state = chunk_scan(step, (q_BTHK, k_BTHK, v_BTHV), (), state, segment_ids_BT, chunk)
    if normalize:
        return o, jnp.concatenate([state[0], state[1].mT], axis=-1)
    return o, state[0]


class _Step(NamedTuple):
    feature_map: FeatureMap | None
    normalize: bool
    epsilon: float
    narrow: jnp.dtype

    def __call__(
        self, tokens: Arrays, gates: Arrays, state: Arrays, masks: Masks
    ) -> tuple[Array, Arrays]:
        del gates
        q, k, v = tokens
        if self.feature_map is not None:
            q, k = self.feature_map(q), masks.exist(self.feature_map(k))
        pairs = later_or_same(q.shape[0])
        weights = masks.within(matmul(q, k, self.narrow, ROWS_BY_ROWS), pairs)
        # Both factors of a product are masked, or one factor and the product: 0 x NaN is NaN, and
        # the gradient of one factor is a product with the other factor.
        q_read, k_reach, v_reach = masks.reads(q), masks.reaches(k), masks.reaches(v)
        if not self.normalize:
            o = matmul(weights, v, self.narrow)
            o += masks.reads(matmul(q_read, state[0], self.narrow))
            written = matmul(k_reach, v_reach, self.narrow, COLUMNS_BY_COLUMNS)
            return stop_non_finite_gradient(o), (masks.carried(state[0]) + written,)
        z = jnp.sum(weights, axis=1, keepdims=True)
        z += masks.reads(jnp.sum(q_read * state[1], axis=1, keepdims=True))
        finite = jnp.isfinite(z)  # a gradient of 0 divided by NaN is NaN
        z = jnp.where(finite, z, 1) + self.epsilon
        o = _quotient(weights, v, q_read, state[0], z, (masks, pairs), self.narrow)
        written = _written(k_reach, v_reach, self.narrow)
        z_sums = masks.carried(state[1]) + jnp.sum(k_reach, axis=0, keepdims=True)
        o = stop_non_finite_gradient(jnp.where(finite, o, jnp.nan))
        return o, (masks.carried(state[0]) + written, z_sums)


@custom_vjp(6)
def _quotient(
    weights_CC: Array,
    v_CV: Array,
    q_CK: Array,
    sums_KV: Array,
    z_C1: Array,
    kept: tuple[Masks, Array],
    narrow: jnp.dtype,
) -> Array:
    """Computes (A v + Q S) / z.

    The gradients of weights and queries are differences, of values and outputs, that are smaller
    than their terms.  Therefore the products for them have the gradient of the output as it is, and
    are divided by z and subtracted in fp32; the states are not rounded.
    """
    return _quotient_forward(weights_CC, v_CV, q_CK, sums_KV, z_C1, kept, narrow)[0]


def _quotient_forward(weights, v, q, sums, z, kept, narrow):
    o = matmul(weights, v, narrow) + kept[0].reads(matmul(q, sums, narrow))
    return o / z, (weights, v, q, sums, z, kept)


def _quotient_backward(narrow, residuals, g):
    weights, v, q, sums, z, (masks, pairs) = residuals
    dweights = masks.within(matmul(g, v, narrow, ROWS_BY_ROWS), pairs)
    dq = masks.reads(matmul(g, sums, sums.dtype, ROWS_BY_ROWS))
    do_o = jnp.sum(weights * dweights, axis=1, keepdims=True)
    do_o = (do_o + jnp.sum(q * dq, axis=1, keepdims=True)) / z
    g = g / z
    dv = matmul(weights, g, narrow, COLUMNS_BY_COLUMNS)
    dsums = matmul(q, masks.reads(g), sums.dtype, COLUMNS_BY_COLUMNS)
    return dweights / z, dv, dq / z, dsums, -do_o / z, None


_quotient.defvjp(_quotient_forward, _quotient_backward)


@custom_vjp(2)
def _written(k_CK: Array, v_CV: Array, narrow: jnp.dtype) -> Array:
    """Computes K^T v; the gradient of the state, which is one of its factors, is not rounded."""
    return matmul(k_CK, v_CV, narrow, COLUMNS_BY_COLUMNS)


def _written_backward(narrow, residuals, g):
    k, v = residuals
    return matmul(v, g, g.dtype, ROWS_BY_ROWS), matmul(k, g, narrow)


_written.defvjp(lambda k, v, narrow: (_written(k, v, narrow), (k, v)), _written_backward)
