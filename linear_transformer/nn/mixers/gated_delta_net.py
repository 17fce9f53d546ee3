"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464) and Gated DeltaProduct."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.mixers.delta_mixer import DeltaMixer, DeltaOptions
from linear_transformer.nn.mixers.mamba2 import inverse_softplus_dt
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.parameters import vector


@mechanism(
    "gated_delta_net",
    meaning="delta rule with one decay for each head and token, and a swish gate",
    source="Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464",
    options={"negative_eigenvalues": False},
    encodes_order=True,
)
@mechanism(
    "delta_product",
    meaning="gated delta rule with two steps for each token and negative eigenvalues",
    source="Siems et al. 2025, arXiv:2502.10297",
    defaults={"steps": 2, "negative_eigenvalues": True},
    encodes_order=True,
)
class GatedDeltaNet(DeltaMixer):
    """Delta rule with the decay of Mamba-2, a scalar per head and token, and a swish gate.

        log a_t = -exp(A) softplus(W_a x_t + b)        y_t = W_O (norm(o_t) * silu(W_G x_t))

    With several steps per token, it is Gated DeltaProduct (Siems et al. 2025, arXiv:2502.10297).
    `DeltaMixer` documents the options.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        steps: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[DeltaOptions],
    ):
        super().__init__(width, heads, steps=steps, rngs=rngs, **options)
        self.dt = self._linear(heads, rngs)
        self.dt_bias = nnx.Param(inverse_softplus_dt(rngs.params(), (heads,)), **vector("heads"))
        decay = jax.random.uniform(rngs.params(), (heads,), minval=1.0, maxval=16.0)
        self.log_decay = nnx.Param(jnp.log(decay), **vector("heads"))  # A
        self.gate = self._linear(heads * self.value_width, rngs)

    def _log_decay(self, x_BTD):
        dtype = self._state_dtype
        dt_BTH = jax.nn.softplus(self.dt(x_BTD).astype(dtype) + self.dt_bias[...].astype(dtype))
        return -jnp.exp(self.log_decay[...].astype(dtype)) * dt_BTH

    def _gated(self, o_BTD, x_BTD):
        return o_BTD * jax.nn.silu(self.gate(x_BTD))
