"""Mamba-3: trapezoidal rule and a rotating state (Lahoti et al. 2026)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.token_shift import TokenShift
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mamba2 import inverse_softplus_dt
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import vector
from linear_transformer.ops import checks
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.non_finite import drop_non_finite_gradient
from linear_transformer.ops.rotation import cumulative_turns, rotated

LEAST_DECAY = 1e-4  # of A, as released


@mechanism(
    "mamba3",
    meaning="state space model with the trapezoidal rule and a state that rotates by the data",
    source="Lahoti et al. 2026, Mamba-3, section 3",
    encodes_order=True,
)
class Mamba3(RecurrentMixer):
    """State space model with one input and one output per head (SISO).

        dt_t = softplus(.)   a_t = exp(-softplus(.) dt_t)   l_t = sigmoid(.)
        theta_t = theta_{t-1} + pi tanh(.) dt_t
        k_t, q_t = R(theta_t) (norm(B_t) + b), R(theta_t) (norm(C_t) + c)
        S_t = a_t S_{t-1} + (1 - l_t) dt_t a_t k_{t-1} x_{t-1}^T + l_t dt_t k_t x_t^T
        y_t = W_O ((S_t^T q_t + D x_t) * silu(z_t))

    Every dot is a linear map of the input u_t, and so are x, z, B and C.  R rotates pairs of
    features, which is a complex state.  There is no short convolution.

    Attributes:
      expansion: width of x over the width of the model.
      state_width: N, width of B and C.
      groups: number of different B and C per token; a divisor of the heads.
      rotary_fraction: part of the N features that rotate; 0 is a real state.
    """

    local: TokenShift

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        expansion: int = 2,
        state_width: int = 64,
        groups: int = 1,
        rotary_fraction: float = 0.5,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        checks.positive(expansion=expansion, state_width=state_width)
        if groups < 1 or heads % groups:
            raise ValueError(f"groups is {groups}; it must divide the number of heads ({heads})")
        if not 0 <= rotary_fraction <= 1:
            raise ValueError(f"rotary_fraction is {rotary_fraction}; it must be from 0 to 1")
        value_width = head_width(expansion * width, heads)
        super().__init__(
            width, heads, key_width=state_width, value_width=value_width, bias=False, **options
        )
        self.groups = groups
        self.angles = int(rotary_fraction * state_width) // 2
        inner = heads * value_width
        self.output = self._output_layer(rngs, inner)
        self.gate, self.value = (self._linear(inner, rngs) for _ in range(2))
        # B, C and angles, which heads share.
        self.shared = self._linear(2 * groups * state_width, rngs, axes=("embed", None))
        self.angle = self._linear(self.angles, rngs, axes=("embed", None)) if self.angles else None
        self.dt, self.decay, self.trapezoid = (self._linear(heads, rngs) for _ in range(3))
        self.dt_bias = nnx.Param(inverse_softplus_dt(rngs.params(), (heads,)), **vector("heads"))
        norm = {"epsilon": 1e-5, "scale_metadata": vector(None), "dtype": self.dtype, "rngs": rngs}
        self.key_norm, self.query_norm = (nnx.RMSNorm(state_width, **norm) for _ in range(2))
        self.key_bias, self.query_bias = (
            nnx.Param(jnp.ones((heads, state_width)), **vector("heads", None)) for _ in range(2)
        )
        self.skip = nnx.Param(jnp.ones((heads,)), **vector("heads"))
        self.local = TokenShift(heads * (state_width + value_width), dtype=self.dtype)

    def _init_sums(self, batch_size):
        sums = {"state": super()._init_sums(batch_size)}
        if self.angles:
            shape = (batch_size, self.heads, self.angles)
            sums["turns"] = jnp.zeros(shape, self._state_dtype)
        return sums

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        sums = {} if sums is None else sums
        state, after = sums.get("state"), {}
        dt_BTH = jax.nn.softplus(self.dt(x).astype(dtype) + self.dt_bias[...].astype(dtype))
        log_decay_BTH = jax.nn.softplus(self.decay(x).astype(dtype))
        log_decay_BTH = -dt_BTH * jnp.maximum(log_decay_BTH, LEAST_DECAY)
        own_BTH = jax.nn.sigmoid(self.trapezoid(x).astype(dtype))
        b, c = jnp.split(self.shared(x), 2, axis=-1)
        k = self._heads(b, self.key_norm, self.key_bias)
        q = self._heads(c, self.query_norm, self.query_bias)
        if self.angle is not None:
            turns_BTxR = jnp.tanh(self.angle(x).astype(dtype))[:, :, None] / 2  # pi is half a turn
            turns_BTHR = turns_BTxR * dt_BTH[..., None]
            turns_BTHR = cumulative_turns(turns_BTHR, sums.get("turns"), segment_ids)
            k, q, after["turns"] = rotated(k, turns_BTHR), rotated(q, turns_BTHR), turns_BTHR[:, -1]
        v = split_heads(self.value(x), self.heads)
        before, past = self.local(
            merge_heads(jnp.concatenate([k, v], axis=-1)), past, segment_ids=segment_ids
        )
        before = split_heads(drop_non_finite_gradient(before), self.heads)
        k_before, v_before = jnp.split(before, [self.key_width], axis=-1)
        # The writes of this token and of the one before are two sets of heads.
        writes = (
            (k, v, dt_BTH * own_BTH),
            (k_before, v_before, dt_BTH * (1 - own_BTH) * jnp.exp(log_decay_BTH)),
        )
        keys, values, weights = (jnp.concatenate(x, axis=2) for x in zip(*writes, strict=True))
        if state is not None:
            state = jnp.concatenate([state, jnp.zeros_like(state)], axis=1)
        o, state = decayed_attention(
            jnp.tile(q, (1, 1, 2, 1)),
            keys,
            (values * weights[..., None]).astype(v.dtype),
            jnp.tile(log_decay_BTH, (1, 1, 2)),
            initial_state=state,
            **self._recurrence(segment_ids),
        )
        o, state = (sum(jnp.split(x, 2, axis)) for x, axis in ((o, 2), (state, 1)))
        o = o + v * self.skip[...].astype(v.dtype)[:, None]
        return merge_heads(o) * jax.nn.silu(self.gate(x)), after | {"state": state}, past

    def _heads(self, x_BTX, norm, bias_HN):
        """Returns the normed B or C of each head, with its bias."""
        x_BTGN = norm(split_heads(x_BTX, self.groups))
        x_BTHN = jnp.repeat(x_BTGN, self.heads // self.groups, axis=2)
        return x_BTHN + bias_HN[...].astype(x_BTHN.dtype)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for two writes and reads; see `Mixer.flops_per_token`."""
        return 2 * super().flops_per_token(context)
