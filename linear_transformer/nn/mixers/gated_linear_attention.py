"""Gated linear attention, GLA (Yang et al. 2023, arXiv:2312.06635)."""

from typing import Unpack

import jax
from flax import nnx

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import LowRank, RecurrentMixer, RecurrentOptions
from linear_transformer.ops import checks
from linear_transformer.ops.decay import decayed_attention


@mechanism(
    "gla",
    meaning="linear attention with a forget gate for every key feature, from the token",
    source="Yang et al. 2023, arXiv:2312.06635, section 4.4",
    encodes_order=True,
)
class GatedLinearAttention(RecurrentMixer):
    """Linear attention with forget gates per token and key feature, and a swish gate (section 4.4).

        a_t = sigmoid(W_2 W_1 x_t + b)^(1 / tau)     S_t = diag(a_t) S_{t-1} + k_t v_t^T
        y_t = W_O (swish(W_R x_t) * norm(S_t^T q_t / sqrt(K)))

    Attributes:
      key_width: features of queries and keys per head; None is half of the value width, as in the
        paper.
      gate_rank: rank of W_2 W_1.
      temperature: tau; a larger tau forgets more slowly.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        gate_rank: int = 16,
        temperature: float = 16.0,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        checks.counts(gate_rank=gate_rank)
        checks.positive(temperature=temperature)
        key_width = max(head_width(width, heads) // 2, 1) if key_width is None else key_width
        super().__init__(width, heads, key_width=key_width, bias=False, **options)
        self.output = self._output_layer(rngs)
        self.temperature = temperature
        keys = heads * self.key_width
        self.query = self._linear(keys, rngs)
        self.key = self._linear(keys, rngs)
        self.value = self._linear(width, rngs)
        self.gate = self._linear(width, rngs)
        self.forget = LowRank(width, gate_rank, keys, use_bias=True, dtype=self.dtype, rngs=rngs)
        self.norm = HeadNorm(heads, self.value_width, dtype=self.dtype)

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        q, k, v, forget = self._by_head(x, self.query, self.key, self.value, self.forget)
        log_decay = jax.nn.log_sigmoid(forget.astype(self._state_dtype)) / self.temperature
        o, sums = decayed_attention(
            q * self.key_width**-0.5,
            k,
            v,
            log_decay,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        return jax.nn.silu(self.gate(x)) * merge_heads(self.norm(o)), sums, past
