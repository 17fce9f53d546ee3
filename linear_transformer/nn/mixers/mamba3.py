"""Mamba-3: trapezoidal rule and a rotating state (Lahoti et al. 2026)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.token_shift import TokenShift
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mamba2 import check_groups, inverse_softplus_dt
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import spread, vector
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
    """State space model with R inputs and R outputs per head: SISO if R is 1, else MIMO.

        dt_t = softplus(.)   a_t = exp(-softplus(.) dt_t)   l_t = sigmoid(.)
        theta_t = theta_{t-1} + pi tanh(.) dt_t
        k_t^r, q_t^r = rot(theta_t) (norm(B_t^r) + b^r), rot(theta_t) (norm(C_t^r) + c^r)
        x_t^r, z_t^r = x_t * m^r, z_t * n^r                                 for r = 1 .. R
        W_t = sum_r k_t^r (x_t^r)^T
        S_t = a_t S_{t-1} + (1 - l_t) dt_t a_t W_{t-1} + l_t dt_t W_t
        y_t = W_O sum_r p^r * (S_t^T q_t^r + D x_t^r) * silu(z_t^r)

    Every dot is a linear map of the input u_t, and so are x, z, B and C.  The function rot rotates
    pairs of features, which is a complex state.  There is no short convolution.

    The recurrence has R sub-tokens per token.  Sub-token r writes k^r (x^r)^T, and only the first
    one decays the state.  Its output lacks the writes of the later ones, which are added after the
    recurrence.  With R = 1, the vectors m, n and p are 1 and no parameters.

    Attributes:
      expansion: width of x over the width of the model.
      state_width: N, width of B and C.
      groups: number of different B and C per token; a divisor of the heads.
      rotary_fraction: part of the N features that rotate; 0 is a real state.
      rank: R, the number of inputs and outputs of each head.
      chunk_size: sub-tokens that are computed at a time; None chooses.
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
        rank: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        checks.counts(expansion=expansion, state_width=state_width, rank=rank)
        check_groups(groups, heads)
        if not 0 <= rotary_fraction <= 1:
            raise ValueError(f"rotary_fraction is {rotary_fraction}; it must be from 0 to 1")
        value_width = head_width(expansion * width, heads)
        super().__init__(
            width, heads, key_width=state_width, value_width=value_width, bias=False, **options
        )
        self.groups = groups
        self.rank = rank
        self.angles = int(rotary_fraction * state_width) // 2
        inner = heads * value_width
        self.output = self._output_layer(rngs, inner)
        self.gate, self.value = (self._linear(inner, rngs) for _ in range(2))
        # B, C and angles, which heads share.
        self.shared = self._linear(2 * groups * rank * state_width, rngs, axes=("embed", None))
        self.angle = self._linear(self.angles, rngs, axes=("embed", None)) if self.angles else None
        self.dt, self.decay, self.trapezoid = (self._linear(heads, rngs) for _ in range(3))
        self.dt_bias = nnx.Param(inverse_softplus_dt(rngs.params(), (heads,)), **vector("heads"))
        norm = {"epsilon": 1e-5, "scale_metadata": vector(None), "dtype": self.dtype, "rngs": rngs}
        self.key_norm, self.query_norm = (nnx.RMSNorm(state_width, **norm) for _ in range(2))
        self.key_bias, self.query_bias = (
            nnx.Param(jnp.ones((heads, rank * state_width)), **vector("heads", None))
            for _ in range(2)
        )
        shape, axes = (heads, rank, value_width), vector("heads", None, None)
        self.inputs, self.gates, self.outputs = (
            None if rank == 1 else nnx.Param(jnp.full(shape, value), **axes)
            for value in (1 / rank, 1.0, 1 / rank)
        )
        self.skip = nnx.Param(jnp.ones((heads,)), **vector("heads"))
        shifted = heads * (rank * state_width + value_width)
        self.local = TokenShift(shifted, dtype=self._state_dtype)

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
            k, q = (self._rotated(x, turns_BTHR) for x in (k, q))
            after["turns"] = turns_BTHR[:, -1]
        v = split_heads(self.value(x), self.heads)
        before, past = self.local(
            merge_heads(jnp.concatenate([k, v], axis=-1)), past, segment_ids=segment_ids
        )
        before = split_heads(drop_non_finite_gradient(before), self.heads)
        k_before, v_before = jnp.split(before, [k.shape[-1]], axis=-1)
        # The writes of this token and of the one before are two sets of heads.
        writes = (
            (k, v, dt_BTH * own_BTH),
            (k_before, v_before, dt_BTH * (1 - own_BTH) * jnp.exp(log_decay_BTH)),
        )
        keys, values, weights = (jnp.concatenate(x, axis=2) for x in zip(*writes, strict=True))
        if state is not None:
            state = jnp.concatenate([state, jnp.zeros_like(state)], axis=1)
        q, keys = self._sub_tokens(jnp.tile(q, (1, 1, 2, 1))), self._sub_tokens(keys)
        values = self._times((values * weights[..., None]).astype(v.dtype), self.inputs)
        log_decay = jnp.pad(log_decay_BTH[:, :, None], [(0, 0)] * 2 + [(0, self.rank - 1), (0, 0)])
        o, state = decayed_attention(
            q,
            keys,
            values,
            jnp.tile(log_decay.reshape(len(x), -1, self.heads), (1, 1, 2)),
            initial_state=state,
            **self._recurrence(
                None if segment_ids is None else jnp.repeat(segment_ids, self.rank, axis=1)
            ),
        )
        if self.rank > 1:
            o = o + self._later_writes(q, keys, values)
        o, state = (sum(jnp.split(x, 2, axis)) for x, axis in ((o, 2), (state, 1)))
        own = self._times(v, self.inputs)
        o = o + own * spread(self.skip[..., None], own)
        o = o * jax.nn.silu(self._times(split_heads(self.gate(x), self.heads), self.gates))
        if self.outputs is not None:
            o = o.reshape(len(x), -1, self.rank, *o.shape[2:])
            o = jnp.einsum("btrhv,hrv->bthv", o, self.outputs[...].astype(o.dtype))
        return merge_heads(o), after | {"state": state}, past

    def _heads(self, x_BTX, norm, bias_HX):
        """Returns the R normed B or C of each head, with their biases, (B, T, H, R N)."""
        x_BTGX = norm(split_heads(x_BTX, self.groups * self.rank))
        x_BTGX = x_BTGX.reshape(*x_BTX.shape[:2], self.groups, -1)
        x_BTHX = jnp.repeat(x_BTGX, self.heads // self.groups, axis=2)
        return x_BTHX + spread(bias_HX[...], x_BTHX)

    def _rotated(self, x_BTHX, turns_BTHR):
        """Rotates the R keys or queries of each head, in fp32 or wider, like their products.

        The gradient of an angle is a sum over all later tokens, which would add up their roundings
        while its terms cancel: products do not change if all later tokens turn together.
        """
        x = x_BTHX.reshape(*x_BTHX.shape[:2], -1, self.key_width).astype(turns_BTHR.dtype)
        return rotated(x, jnp.repeat(turns_BTHR, self.rank, axis=2)).reshape(x_BTHX.shape)

    def _sub_tokens(self, x_BTHX):
        """Returns (B, T R, H, X / R): a part of the features for each sub-token."""
        x = x_BTHX.reshape(*x_BTHX.shape[:3], self.rank, -1).swapaxes(2, 3)
        return x.reshape(len(x), -1, *x.shape[3:])

    def _times(self, x_BTHV, weights):
        """Returns (B, T R, H, V): the features times the weights of each sub-token, (H, R, V)."""
        if weights is None:
            return x_BTHV
        weights_HRV = jnp.tile(weights[...], (x_BTHV.shape[2] // self.heads, 1, 1))
        x_BTHRV = jnp.repeat(x_BTHV[:, :, :, None], self.rank, axis=3)
        x_BTHRV = x_BTHRV * spread(weights_HRV, x_BTHRV)
        return self._sub_tokens(x_BTHRV.reshape(*x_BTHV.shape[:3], -1))

    def _later_writes(self, *arrays):
        """Returns what the writes of the later sub-tokens of each token add to its outputs."""
        q, k, v = (x.reshape(len(x), -1, self.rank, *x.shape[2:]) for x in arrays)
        scores = jnp.triu(jnp.einsum("btshn,btrhn->bthsr", q, k), 1)
        return jnp.einsum("bthsr,btrhv->btshv", scores, v).reshape(arrays[2].shape)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for two writes and reads per sub-token; see `Mixer.flops_per_token`.

        A sub-token also reads the writes of the later ones.
        """
        pairs = self.rank * (self.rank - 1) * self.heads * (self.key_width + self.value_width)
        return 2 * self.rank * super().flops_per_token(context) + 2 * pairs
