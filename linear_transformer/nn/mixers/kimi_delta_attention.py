"""Kimi Delta Attention, KDA (Kimi Team 2025, arXiv:2510.26692)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import split_heads
from linear_transformer.nn.mixers.delta_mixer import DeltaMixer, DeltaOptions
from linear_transformer.nn.mixers.mamba2 import inverse_softplus_dt
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import LowRank
from linear_transformer.nn.parameters import vector


@mechanism(
    "kda",
    meaning="delta rule with a decay for every key feature",
    source="Kimi Team 2025, arXiv:2510.26692",
    options={"negative_eigenvalues": False},
    encodes_order=True,
)
class KimiDeltaAttention(DeltaMixer):
    """Delta rule with a decay for every key feature and a sigmoid gate, both of low rank.

        log a_t = -exp(A_h) softplus(W_2 W_1 x_t + b)
        y_t = W_O (norm(o_t) * sigmoid(W_4 W_3 x_t + c))

    The rank of W_2 W_1 and of W_4 W_3 is the value width of a head.  `DeltaMixer` documents the
    other options.

    Attributes:
      lower_bound: the smallest log a_t, below 0: with it, log a_t is
        lower_bound sigmoid(exp(A_h) (W_2 W_1 x_t + b)), as fla's `naive_kda_lowerbound_gate`
        computes it.  None is the paper's decay, which has no bound.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        lower_bound: float | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[DeltaOptions],
    ):
        if lower_bound is not None and not lower_bound < 0:
            raise ValueError(f"lower_bound is {lower_bound}; it must be below 0, or None")
        super().__init__(width, heads, rngs=rngs, **options)
        self.lower_bound = lower_bound
        rank, keys, values = self.value_width, heads * self.key_width, heads * self.value_width
        self.dt = LowRank(width, rank, keys, dtype=self.dtype, rngs=rngs)
        self.dt_bias = nnx.Param(inverse_softplus_dt(rngs.params(), (keys,)), **vector("heads"))
        decay = jax.random.uniform(rngs.params(), (heads, 1), minval=1.0, maxval=16.0)
        self.log_decay = nnx.Param(jnp.log(decay), **vector("heads", None))  # A
        self.gate = LowRank(width, rank, values, use_bias=True, dtype=self.dtype, rngs=rngs)

    def _log_decay(self, x_BTD):
        dtype = self._state_dtype
        dt = split_heads(self.dt(x_BTD).astype(dtype) + self.dt_bias[...].astype(dtype), self.heads)
        scale = jnp.exp(self.log_decay[...].astype(dtype))
        if self.lower_bound is None:
            return -scale * jax.nn.softplus(dt)
        return self.lower_bound * jax.nn.sigmoid(scale * dt)

    def _gated(self, o_BTD, x_BTD):
        return o_BTD * jax.nn.sigmoid(self.gate(x_BTD))
