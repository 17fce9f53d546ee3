"""Mamba-2, structured state space duality (Dao and Gu 2024, arXiv:2405.21060)."""

import math
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.short_convolution import ShortConvolution, silu_convolution
from linear_transformer.nn.logical_axes import named
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import spread, vector
from linear_transformer.ops import checks
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.types import PRNGKey

DT_RANGE = (1e-3, 1e-1)  # step sizes at initialisation


def inverse_softplus_dt(key: PRNGKey, shape: tuple[int, ...]) -> jax.Array:
    """Returns biases b with softplus(b) log-uniform over DT_RANGE."""
    low, high = (math.log(dt) for dt in DT_RANGE)
    dt = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
    return dt + jnp.log(-jnp.expm1(-dt))


def check_groups(groups: int, heads: int) -> None:
    """Raises a ValueError unless the groups have equal numbers of heads."""
    if groups < 1 or heads % groups:
        raise ValueError(f"groups is {groups}; it must divide the number of heads ({heads})")


class Mamba2Options(RecurrentOptions, total=False):
    """Options of every `Mamba2`."""

    expansion: int
    state_width: int
    groups: int
    convolution: int


@mechanism(
    "mamba2",
    meaning="state space duality: one decay for each head and token",
    source="Dao and Gu 2024, arXiv:2405.21060, section 7",
    encodes_order=True,
    feed_forward_ratio=0,
    layers=2,
)
class Mamba2(RecurrentMixer):
    """State space model with one decay per head and token (section 7, figure 6).

        z, [x, B, C], dt = W_in u_t        [x, B, C] = silu(convolution([x, B, C]))
        dt_t = softplus(dt + b)            S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T
        y_t = W_O norm((S_t^T C_t + D x_t) * silu(z_t))

    B and C are keys and queries; the heads of a group share them, and the RMS norm is over the
    features of a group, as in the released layer.

    Attributes:
      expansion: width of x over the width of the model.
      state_width: N, width of B and C.
      groups: number of different B and C per token; a divisor of the heads.
      convolution: tokens in the window of the short convolution.
    """

    local: ShortConvolution

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        expansion: int = 2,
        state_width: int = 64,
        groups: int = 1,
        convolution: int = 4,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        checks.counts(expansion=expansion, state_width=state_width)
        check_groups(groups, heads)
        value_width = head_width(expansion * width, heads)
        super().__init__(
            width, heads, key_width=state_width, value_width=value_width, bias=False, **options
        )
        self.groups = groups
        self.inner = heads * value_width
        self.output = self._output_layer(rngs, self.inner)
        mixed = self.inner + 2 * groups * state_width
        self.gate = self._linear(self.inner, rngs)
        self.value = self._linear(self.inner, rngs)
        # B and C, which the heads of a group share.
        self.shared = self._linear(2 * groups * state_width, rngs, axes=("embed", None))
        self.dt = self._linear(heads, rngs)
        self.local = ShortConvolution(mixed, convolution, dtype=self.dtype, rngs=rngs)
        self.convolution_bias = nnx.Param(jnp.zeros((mixed,)), **vector(None))
        self.dt_bias = nnx.Param(inverse_softplus_dt(rngs.params(), (heads,)), **vector("heads"))
        decay = jax.random.uniform(rngs.params(), (heads,), minval=1.0, maxval=16.0)
        self.log_decay = nnx.Param(jnp.log(decay), **vector("heads"))  # log(-A)
        self.skip = nnx.Param(jnp.ones((heads,)), **vector("heads"))
        self.norm = HeadNorm(groups, self.inner // groups, affine=False, dtype=self.dtype)
        self.norm_scale = nnx.Param(jnp.ones(self.inner), **vector("heads"))

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        dtype = self._state_dtype
        parts = (
            named(self.value(x), "rows", "time", "heads"),
            named(self.shared(x), "rows", "time", None),
        )
        (u, shared), past = silu_convolution(
            self.local, self.convolution_bias, parts, past, segment_ids
        )
        shared = named(shared, "rows", "time", None)
        v = split_heads(u, self.heads)
        b, c = jnp.split(shared, 2, axis=-1)
        k, q = (
            jnp.repeat(split_heads(a, self.groups), self.heads // self.groups, axis=2)
            for a in (b, c)
        )
        dt_BTH = jax.nn.softplus(self.dt(x).astype(dtype) + self.dt_bias[...].astype(dtype))
        log_decay_BTH = -dt_BTH * jnp.exp(self.log_decay[...].astype(dtype))
        o, sums = self._attend(
            x, q, k, (v * dt_BTH[..., None]).astype(v.dtype), log_decay_BTH, sums, segment_ids
        )
        o = o + v * spread(self.skip[..., None], v)
        y = merge_heads(o) * jax.nn.silu(self.gate(x))
        y = merge_heads(self.norm(split_heads(y, self.groups)))
        return y * spread(self.norm_scale[...], y), sums, past

    def _attend(self, x, q, k, v, log_decay, sums, segment_ids):
        del x
        return decayed_attention(
            q, k, v, log_decay, initial_state=sums, **self._recurrence(segment_ids)
        )
