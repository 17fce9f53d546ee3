"""Mamba, the selective state space model (Gu and Dao 2023, arXiv:2312.00752)."""

import math
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import Linear
from linear_transformer.nn.layers.short_convolution import ShortConvolution, silu_convolution
from linear_transformer.nn.logical_axes import named
from linear_transformer.nn.mixers.mamba2 import inverse_softplus_dt
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import spread, vector
from linear_transformer.ops import checks
from linear_transformer.ops.selective_scan import FORMS, selective_scan


@mechanism(
    "mamba",
    meaning="selective state space: every channel has states with decays of the token",
    source="Gu and Dao 2023, arXiv:2312.00752, algorithm 2",
    options={"negative_eigenvalues": False},
    encodes_order=True,
    feed_forward_ratio=0,
    layers=2,
)
class Mamba(RecurrentMixer):
    """Selective state space, with a decay per entry of the D x N state (section 3.4, algorithm 2).

        x, z = W_in u_t                  x = silu(convolution(x))
        dt, B, C = W_x x_t               dt_t = softplus(W_dt dt + b)
        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t      y_t = W_O ((C_t^T h_t + D x_t) * silu(z_t))

    There are no heads: every channel has its own state of N numbers.

    Attributes:
      expansion: number of channels over the width of the model.
      state_width: N, state entries per channel.
      dt_rank: width of dt before W_dt; None is width / 16, rounded up.
      convolution: tokens in the window of the short convolution.
      negative_eigenvalues: whether 2 exp(dt_t A) - 1 replaces exp(dt_t A), so that an entry of the
        state can change its sign, which parity needs (Grazzi et al. 2024, arXiv:2411.12537).
      form, chunk_size: see `ops.selective_scan.selective_scan`.
    """

    forms = FORMS
    local: ShortConvolution

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        expansion: int = 2,
        state_width: int = 16,
        dt_rank: int | None = None,
        convolution: int = 4,
        negative_eigenvalues: bool = False,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        del heads
        checks.counts(expansion=expansion, state_width=state_width, dt_rank=dt_rank)
        self.dt_rank = math.ceil(width / 16) if dt_rank is None else dt_rank
        inner = expansion * width
        super().__init__(width, 1, key_width=state_width, value_width=inner, bias=False, **options)
        self.negative_eigenvalues = negative_eigenvalues
        self.output = self._output_layer(rngs, inner)
        self.value = self._linear(inner, rngs)
        self.gate = self._linear(inner, rngs)
        self.local = ShortConvolution(inner, convolution, dtype=self.dtype, rngs=rngs)
        self.convolution_bias = nnx.Param(jnp.zeros((inner,)), **vector("heads"))
        self.selection = Linear(
            inner,
            self.dt_rank + 2 * state_width,
            axes=("heads", None),
            use_bias=False,
            dtype=self.dtype,
            rngs=rngs,
        )
        self.dt = Linear(
            self.dt_rank,
            inner,
            axes=(None, "heads"),
            dtype=self.dtype,
            kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            bias_init=lambda key, shape, dtype: inverse_softplus_dt(key, shape).astype(dtype),
            rngs=rngs,
        )
        poles = jnp.arange(1, state_width + 1, dtype=jnp.float32)  # S4D-Real
        log_decay = jnp.tile(jnp.log(poles)[:, None], inner)
        self.log_decay = nnx.Param(log_decay, **vector(None, "heads"))  # log(-A)
        self.skip = nnx.Param(jnp.ones((inner,)), **vector("heads"))

    def _init_sums(self, batch_size):
        return jnp.zeros((batch_size, self.key_width, self.value_width), self._state_dtype)

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        u_BTD = named(self.value(x), "rows", "time", "heads")
        (u_BTD,), past = silu_convolution(
            self.local, self.convolution_bias, (u_BTD,), past, segment_ids
        )
        dt, b_BTN, c_BTN = jnp.split(
            self.selection(u_BTD), [self.dt_rank, self.dt_rank + self.key_width], axis=-1
        )
        y_BTD, sums = selective_scan(
            u_BTD,
            jax.nn.softplus(self.dt(dt).astype(dtype)),
            -jnp.exp(self.log_decay[...].astype(dtype)),
            b_BTN,
            c_BTN,
            negative_eigenvalues=self.negative_eigenvalues,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        y_BTD = y_BTD + u_BTD * spread(self.skip[...], u_BTD)
        return y_BTD * jax.nn.silu(self.gate(x)), sums, past
