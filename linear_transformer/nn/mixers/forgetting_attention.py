"""Softmax attention with forget gates, the mixer of FoX (Lin et al. 2025, arXiv:2503.02130)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.softmax_attention import SoftmaxAttention, SoftmaxOptions


@mechanism(
    "fox",
    meaning="softmax attention with a forget gate for each head and token (Forgetting Transformer)",
    source="Lin et al. 2025, arXiv:2503.02130, section 3",
    options={"cache_capacity": 1024},
    encodes_order=True,
    rotary=True,
)
class ForgettingAttention(SoftmaxAttention):
    """Softmax attention in which the gates of the tokens after a key decay its weight.

        f_t = sigmoid(w_f^T x_t + b_f)
        o_t = sum_s softmax_s(q_t.k_s / sqrt(K) + sum over s < l <= t of log f_l) v_s

    The gates are all that knows the order, unless `rotary` is set.  The paper's "Pro" block adds
    `qk_norm` and `output_gate`.  `SoftmaxAttention` documents the options.

    The state holds the decay of each key, the sum over its later tokens, as "log_decay".
    """

    directions = ("causal",)

    def __init__(
        self, width: int, heads: int, *, rngs: nnx.Rngs, **options: Unpack[SoftmaxOptions]
    ):
        super().__init__(width, heads, rngs=rngs, **options)
        self.forget = self._linear(self.heads, rngs, use_bias=True)

    def _init_state(self, batch_size):
        shape = (batch_size, self.slots, self.heads)
        return super()._init_state(batch_size) | {"log_decay": jnp.zeros(shape, self._gate_dtype)}

    @property
    def _gate_dtype(self) -> jnp.dtype:
        return jnp.promote_types(self.dtype, jnp.float32)

    def _log_forget(self, x_BTD):
        return jax.nn.log_sigmoid(self.forget(x_BTD).astype(self._gate_dtype))
