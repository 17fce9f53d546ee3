"""LION-S: selective decay in both directions (Afzal et al. 2025, arXiv:2502.16249)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.mixers.mamba2 import DT_RANGE
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import KeyedOptions, RecurrentMixer
from linear_transformer.ops import checks
from linear_transformer.ops.decay import DIRECTIONS, decayed_attention
from linear_transformer.ops.normalizer import append_ones

GATES = ("scalar", "vector")


@mechanism(
    "lion",
    meaning="LION-S: normalised attention with selective decays, one way or both ways",
    source="Afzal et al. 2025, arXiv:2502.16249",
    encodes_order=True,
    bidirectional={},
)
class Lion(RecurrentMixer):
    """Normalised attention with weights q_i^T (product of the gates between i and j) k_j.

        S_t = diag(a_t) S_{t-1} + k_t [v_t, 1]^T, forward and reverse     a_t = sigmoid(W x_t + b)

    Queries and keys have the positive feature map phi(x) = (silu(x) + 1/2) / |silu(x) + 1/2|.  A
    vector gate, as for Long Range Arena, starts as a state space model with real poles -1, ..., -K
    (S4D-Real) and step sizes from 0.001 to 0.1 over the heads, so W starts small.  With a vector
    gate, keys are also scaled by (a - 1) / log a, as in the zero-order hold of such a model.

    Difference from the released code: a query at t reads a key at s < t by the gates of s + 1 to t,
    and a key at s > t by those of t to s - 1; there the gates are those of s to t - 1, and of t + 1
    to s.

    Attributes:
      gate: "vector", one per key feature, or "scalar", one per head.
      direction: "causal", "anticausal" or "bidirectional"; only a causal mixer has a state.
    """

    directions = DIRECTIONS

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        gate: str = "vector",
        direction: str = "causal",
        rngs: nnx.Rngs,
        **options: Unpack[KeyedOptions],
    ):
        checks.choice("gate", gate, GATES)
        super().__init__(width, heads, direction=direction, bias=False, **options)
        self.output = self._output_layer(rngs)
        self.gate = gate
        keys = heads * self.key_width
        self.query = self._linear(keys, rngs)
        self.key = self._linear(keys, rngs)
        self.value = self._linear(width, rngs)
        if gate == "vector":
            small = nnx.initializers.variance_scaling(0.1**2, "fan_in", "normal")
            self.decay = self._linear(
                keys, rngs, use_bias=True, kernel_init=small, bias_init=self._real_poles
            )
        else:
            self.decay = self._linear(heads, rngs, use_bias=True)

    def _real_poles(self, key, shape, dtype):
        """Returns b with sigmoid(b) = exp(-dt n) for n = 1, ..., K and one dt per head."""
        del key
        dt_H = jnp.geomspace(*DT_RANGE, self.heads, dtype=dtype)
        rate_HK = dt_H[:, None] * jnp.arange(1, self.key_width + 1, dtype=dtype)
        return -jnp.log(jnp.expm1(rate_HK)).reshape(shape)

    @property
    def _state_shape(self):
        return self.key_width, self.value_width + 1

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        q, k, v = self._by_head(x, self.query, self.key, self.value)
        q, k = bounded_features(q.astype(dtype)), bounded_features(k.astype(dtype))
        log_decay = jax.nn.log_sigmoid(self.decay(x).astype(dtype))
        if self.gate == "vector":
            log_decay = split_heads(log_decay, self.heads)
            k = k * zero_order_hold(log_decay)
        o, sums = decayed_attention(
            q.astype(v.dtype),
            k.astype(v.dtype),
            append_ones(v).astype(dtype),
            log_decay,
            direction=self.direction,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        return merge_heads(o[..., :-1] / o[..., -1:]).astype(v.dtype), sums, past


def bounded_features(x_BTHK: Float[Array, "B T H K"]) -> Float[Array, "B T H K"]:
    """Returns positive vectors of unit length; silu is never below -0.279."""
    y = jax.nn.silu(x_BTHK) + 0.5
    return y / jnp.linalg.norm(y, axis=-1, keepdims=True)


def zero_order_hold(log_decay: Float[Array, "*rows K"]) -> Float[Array, "*rows K"]:
    """Returns (a - 1) / log a for log decays log a, by a series near a = 1."""
    near = log_decay > -1e-3
    safe = jnp.where(near, -1.0, log_decay)
    return jnp.where(near, 1 + log_decay / 2 + log_decay**2 / 6, jnp.expm1(safe) / safe)
