"""LRU, the linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349)."""

import math
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from linear_transformer.nn.layers.linear import Linear
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import spread, vector
from linear_transformer.ops import checks
from linear_transformer.ops.selective_scan import FORMS, diagonal_scan


@mechanism(
    "lru",
    meaning="linear recurrent unit: complex diagonal states with learned decays",
    source="Orvieto et al. 2023, arXiv:2303.06349, section 3",
    encodes_order=True,
)
class LRU(RecurrentMixer):
    """Complex diagonal recurrence with decays fixed over time, and a gated output (section 3).

        h_t = lambda * h_{t-1} + gamma * B x_t        lambda = exp(-exp(nu) + i exp(theta))
        g_t = gelu(Re(C h_t) + D x_t)                 y_t = W_1 g_t * sigmoid(W_2 g_t)

    At initialisation, lambda is uniform on a ring in the unit disc and gamma is
    sqrt(1 - |lambda|^2).  The state holds real and imaginary parts.  There are no heads.

    Attributes:
      state_width: complex numbers in the state; None is the width of the model.
      r_min, r_max: radii of the ring.
      max_phase: largest angle of lambda at initialisation, in radians.
      form, chunk_size: see `ops.selective_scan.diagonal_scan`.
    """

    forms = FORMS

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        state_width: int | None = None,
        r_min: float = 0.4,
        r_max: float = 0.99,
        max_phase: float = 2 * math.pi,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        del heads
        state_width = width if state_width is None else state_width
        checks.counts(state_width=state_width)
        checks.positive(max_phase=max_phase)
        if not 0 <= r_min < r_max < 1:
            raise ValueError(f"r_min is {r_min}, r_max is {r_max}; need 0 <= r_min < r_max < 1")
        super().__init__(width, 1, key_width=state_width, bias=False, **options)
        self.output = self._output_layer(rngs)
        self.output_gate = self._linear(width, rngs, axes=("heads", "embed"))
        # Real and imaginary rows of B and C, with variances 1 / 2D and 1 / N.
        half = nnx.initializers.variance_scaling(0.5, "fan_in", "normal")
        double = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.input = self._linear(2 * state_width, rngs, kernel_init=half)
        self.read = Linear(
            2 * state_width,
            width,
            axes=("heads", "embed"),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=double,
            rngs=rngs,
        )
        skip = jax.random.normal(rngs.params(), (width,), jnp.float32)
        self.skip = nnx.Param(skip, **vector("embed"))
        radius, phase = jax.random.uniform(rngs.params(), (2, state_width), jnp.float32, 1e-6)
        square = radius * (r_max**2 - r_min**2) + r_min**2  # |lambda|^2
        self.nu = nnx.Param(jnp.log(-0.5 * jnp.log(square)), **vector("heads"))
        self.theta = nnx.Param(jnp.log(max_phase * phase), **vector("heads"))
        self.log_gamma = nnx.Param(0.5 * jnp.log1p(-square), **vector("heads"))

    def _init_sums(self, batch_size):
        return jnp.zeros((batch_size, self.key_width, 2), self._state_dtype)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token: a complex product and sum for each number of the state."""
        del context
        return 8 * self.key_width

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        nu, theta, log_gamma = (p[...].astype(dtype) for p in (self.nu, self.theta, self.log_gamma))
        decay = jnp.exp(-jnp.exp(nu))
        a_N = lax.complex(decay * jnp.cos(jnp.exp(theta)), decay * jnp.sin(jnp.exp(theta)))
        real, imaginary = jnp.split(self.input(x).astype(dtype), 2, axis=-1)
        gamma = jnp.exp(log_gamma)
        h_BTN, last_BN = diagonal_scan(
            lax.complex(gamma * real, gamma * imaginary),
            a_N,
            initial_state=None if sums is None else lax.complex(sums[..., 0], sums[..., 1]),
            **self._recurrence(segment_ids),
        )
        parts = jnp.concatenate([h_BTN.real, -h_BTN.imag], axis=-1).astype(x.dtype)
        g_BTD = jax.nn.gelu(self.read(parts) + x * spread(self.skip[...], x))
        return g_BTD, jnp.stack([last_BN.real, last_BN.imag], axis=-1), past

    def _project(self, o_BTI):
        return self.output(o_BTI) * jax.nn.sigmoid(self.output_gate(o_BTI))
