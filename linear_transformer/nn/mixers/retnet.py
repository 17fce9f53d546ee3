"""Multi-scale retention, the mixer of RetNet (Sun et al. 2023, arXiv:2307.08621)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.layers.positions import rotate
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import KeyedOptions, RecurrentMixer
from linear_transformer.ops import checks
from linear_transformer.ops.decay import decayed_attention


@mechanism(
    "retnet",
    meaning="retention: a fixed decay for each head, rotary positions, and a swish gate",
    source="Sun et al. 2023, arXiv:2307.08621, equations 5-8",
    encodes_order=True,
    rotary=True,
    feed_forward_ratio=2,
)
class Retention(RecurrentMixer):
    """Retention with fixed decays from 1 - 2^-5 on, one per head, and a swish gate (equations 5-8).

        S_t = gamma S_{t-1} + k_t v_t^T      o_t = S_t^T q_t / sqrt(K)
        y_t = W_O (swish(W_G x_t) * norm(o_t))

    Rotary positions and the decay together are what the paper calls xPos.  The frequencies are
    10000^(-i / (K/2)) for i from 0; in the released code they are 10000^(-i / (K/2 - 1)).

    Attributes:
      value_expansion: width of all values over the width of the model; 2 in the paper.
      normalize: whether retention scores are divided by the root of the sum of the decays and then
        by max(|sum of scores|, 1) (section 2.1, "Retention Score Normalization").  The head norm
        that follows cancels this factor up to rounding.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        value_expansion: int = 2,
        rotary: bool = True,
        normalize: bool = True,
        rngs: nnx.Rngs,
        **options: Unpack[KeyedOptions],
    ):
        checks.counts(value_expansion=value_expansion)
        value_width = head_width(value_expansion * width, heads)
        super().__init__(width, heads, value_width=value_width, bias=False, **options)
        if rotary and self.key_width % 2:
            raise ValueError(f"rotary positions need an even key width, not {self.key_width}")
        self.rotary = rotary
        self.normalize = normalize
        keys, values = heads * self.key_width, heads * value_width
        self.output = self._output_layer(rngs, values)
        self.query = self._linear(keys, rngs)
        self.key = self._linear(keys, rngs)
        self.value = self._linear(values, rngs)
        self.gate = self._linear(values, rngs)
        self.norm = HeadNorm(heads, value_width, affine=False, epsilon=1e-6, dtype=self.dtype)

    @property
    def _state_shape(self):
        return self.key_width, self.value_width + self.normalize

    def _init_sums(self, batch_size):
        sums = {"memory": super()._init_sums(batch_size)}
        if self.normalize:
            sums["decays"] = jnp.zeros((batch_size, self.heads, 1, 1), self._state_dtype)
        return sums

    def _mix(self, x, sums, past, segment_ids, positions):
        sums = {} if sums is None else sums
        q, k, v = self._by_head(x, self.query, self.key, self.value)
        if self.rotary:
            q, k = rotate(q, positions), rotate(k, positions)
        q = q * self.key_width**-0.5
        ones = jnp.ones((*x.shape[:2], self.heads, 1), self._state_dtype)
        if self.normalize:
            v = jnp.concatenate([v.astype(ones.dtype), ones], axis=-1)
        log_decay_H = jnp.log1p(-(2.0 ** (-5 - jnp.arange(self.heads, dtype=self._state_dtype))))
        options = self._recurrence(segment_ids)
        o, memory = decayed_attention(
            q, k, v, log_decay_H, initial_state=sums.get("memory"), **options
        )
        new_sums = {"memory": memory}
        if self.normalize:
            total, new_sums["decays"] = decayed_attention(
                ones, ones, ones, log_decay_H, initial_state=sums.get("decays"), **options
            )
            o = o / jnp.sqrt(total)
            o = o[..., :-1] / jnp.maximum(jnp.abs(o[..., -1:]), 1)
        o = merge_heads(self.norm(o))
        return jax.nn.silu(self.gate(x)) * o, new_sums, past
