"""Attention with decay as a TPU kernel: the equations of `ops.decay_chunk`, chunk by chunk.

With the pair decays in the weights A, the entering state S, and the decays from and to the state,

    o = A v + (read Q) S              S' = total S + (reach K)^T v
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from linear_transformer.ops.pallas.arithmetic import (
    COLUMNS_BY_COLUMNS,
    Masks,
    later_or_same,
    matmul,
    stop_non_finite_gradient,
)
from linear_transformer.ops.pallas.chunk_scan import Arrays, chunk_scan
from linear_transformer.ops.pallas.decays import ScalarDecays, VectorDecays
from linear_transformer.types import Keys, Outputs, Queries, SegmentIds, State, Values

CHUNK_SIZES = {"scalar": 128, "vector": 64}  # width of the matrix unit; one halving less


def pallas_form(
    q_BTHK: Queries,
    k_BTHK: Keys,
    v_BTHV: Values,
    log_decay: Float[Array, "B T H _"],
    state_BHKV: State,
    segment_ids_BT: SegmentIds | None,
    chunk_size: int | None,
) -> tuple[Outputs, State]:
    """Computes causal `ops.decay.decayed_attention`; rounds chunks up to a power of two."""
    scalar = log_decay.shape[-1] == 1
    chunk = chunk_size or CHUNK_SIZES["scalar" if scalar else "vector"]
    step = _Step(jnp.result_type(q_BTHK, k_BTHK, v_BTHV))
    vectors, gates = ((), (log_decay[..., 0],)) if scalar else ((log_decay,), ())
    tokens = (*vectors, q_BTHK, k_BTHK, v_BTHV)
    o, (state,) = chunk_scan(step, tokens, gates, (state_BHKV,), segment_ids_BT, chunk)
    return o, state


class _Step(NamedTuple):
    narrow: jnp.dtype

    def __call__(
        self, tokens: Arrays, gates: Arrays, state: Arrays, masks: Masks
    ) -> tuple[Array, Arrays]:
        *vectors, q, k, v = tokens
        decays = VectorDecays(*vectors) if vectors else ScalarDecays(*gates)
        weights = decays.weights(q, k, self.narrow)
        weights = masks.within(weights, later_or_same(q.shape[0]))
        # Both factors of a product are masked, or one factor and the product: 0 x NaN is NaN, and
        # the gradient of one factor is a product with the other factor.
        read = matmul(masks.reads(q * decays.read), state[0], self.narrow)
        o = matmul(weights, v, self.narrow) + masks.reads(read)
        k_reach, v_reach = masks.reaches(k * decays.reach), masks.reaches(v)
        update = matmul(k_reach, v_reach, self.narrow, COLUMNS_BY_COLUMNS)
        o = stop_non_finite_gradient(o)
        return o, (masks.carried(decays.total * masks.carried(state[0])) + update,)
