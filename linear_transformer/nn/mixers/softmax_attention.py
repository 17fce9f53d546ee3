"""Multi-head softmax attention, the baseline, with a KV cache or a sliding window."""

from typing import Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.positions import rotate
from linear_transformer.nn.mixers.cached_attention import CacheOptions
from linear_transformer.nn.mixers.cached_softmax import CachedSoftmax
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.parameters import vector
from linear_transformer.ops import checks
from linear_transformer.ops.non_finite import stop_non_finite_gradient
from linear_transformer.ops.softmax import Form
from linear_transformer.types import Activations


class SoftmaxOptions(CacheOptions, total=False):
    """Options of every `SoftmaxAttention`."""

    query_heads: int | None
    key_value_heads: int | None
    key_width: int | None
    qk_norm: bool
    output_gate: bool
    sinks: bool
    rotary_fraction: float
    form: str


@mechanism(
    "softmax",
    meaning="softmax attention with a key-value cache, or over a sliding window",
    source="Vaswani et al. 2017, arXiv:1706.03762, equation 1",
    options={"cache_capacity": 1024},
    rotary=True,
    bidirectional={},
    causal_only=("window", "cache_capacity"),
)
class SoftmaxAttention(CachedSoftmax):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Attributes:
      query_heads: heads of queries; None is the number of heads of the model.
      key_value_heads: heads of keys and values, which query heads share in equal groups; None is
        one for each query head.  The state holds no others (Ainslie et al. 2023,
        arXiv:2305.13245).
      qk_norm: whether queries and keys of each head get an RMS norm with learned gains.  Rotary
        positions come after it (Henry et al. 2020, arXiv:2010.04245, with RMS as in Qwen3).
      output_gate: whether sigmoid(W_G x_t) multiplies each feature of the heads' outputs (Qiu et
        al. 2025, arXiv:2505.06708; Qwen3-Next).
      sinks: whether each head has a learned sink, see `ops.softmax`.
      rotary_fraction: part of the features of queries and keys that `rotary` turns, the first ones;
        the rest is not changed (Black et al. 2022, arXiv:2204.06745; 0.25 in Qwen3-Next).
      cache_capacity: tokens that the decoding state can hold if there is no window.  The caller
        must not exceed it: further tokens would overwrite earlier ones.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        query_heads: int | None = None,
        key_value_heads: int | None = None,
        key_width: int | None = None,
        qk_norm: bool = False,
        output_gate: bool = False,
        sinks: bool = False,
        rotary_fraction: float = 1.0,
        form: str = "auto",
        rngs: nnx.Rngs,
        **options: Unpack[CacheOptions],
    ):
        checks.choice("form", form, get_args(Form))
        checks.counts(query_heads=query_heads, key_value_heads=key_value_heads)
        heads = heads if query_heads is None else query_heads
        super().__init__(width, heads, key_width=key_width, **options)
        self.key_value_heads = heads if key_value_heads is None else key_value_heads
        if heads % self.key_value_heads:
            raise ValueError(f"key_value_heads={key_value_heads} does not divide heads ({heads})")
        if not 0 < rotary_fraction <= 1 or (self.rotary and rotary_fraction * self.key_width % 2):
            raise ValueError(
                f"rotary_fraction is {rotary_fraction}; it must be above 0, at most 1, and make an "
                f"even number of the {self.key_width} features"
            )
        self.rotary_fraction = rotary_fraction
        self.form = form
        queries, keys = (n * self.key_width for n in (heads, self.key_value_heads))
        self.query = self._linear(queries, rngs)
        self.key = self._linear(keys, rngs)
        self.value = self._linear(keys, rngs)
        self.output = self._output_layer(rngs, queries)
        self.query_norm = self._head_norm(heads) if qk_norm else None
        self.key_norm = self._head_norm(self.key_value_heads) if qk_norm else None
        self.gate = self._linear(queries, rngs) if output_gate else None
        self.sinks = nnx.Param(jnp.zeros(heads), **vector("heads")) if sinks else None

    def _head_norm(self, heads: int) -> HeadNorm:
        return HeadNorm(heads, self.key_width, epsilon=1e-6, dtype=self.dtype)

    def _forward(self, x_BTD, state, segment_ids, positions):
        q_BTHK = split_heads(self.query(x_BTD), self.heads)
        k_BTJK, v_BTJK = (
            split_heads(layer(x_BTD), self.key_value_heads) for layer in (self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHK, k_BTJK = self.query_norm(q_BTHK), self.key_norm(k_BTJK)
        if self.rotary:
            q_BTHK, k_BTJK = (self._rotated(x, positions) for x in (q_BTHK, k_BTJK))
        log_forget_BTH = self._log_forget(x_BTD)
        o_BTHK, state = self._attend(q_BTHK, k_BTJK, v_BTJK, state, segment_ids, log_forget_BTH)
        o_BTD = merge_heads(o_BTHK)
        if self.gate is not None:
            o_BTD = stop_non_finite_gradient(o_BTD) * jax.nn.sigmoid(self.gate(x_BTD))
        return self.output(o_BTD), state

    def _rotated(self, x_BTHK, positions):
        first, rest = jnp.split(x_BTHK, [int(self.rotary_fraction * self.key_width)], axis=-1)
        return jnp.concatenate([rotate(first, positions), rest], axis=-1)

    def _log_forget(self, x_BTD: Activations) -> Float[Array, "B T H"] | None:
        """Returns the log forget gates of the tokens; None does not forget."""
        del x_BTD
        return None
