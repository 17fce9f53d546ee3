"""Gated slot attention, GSA (Zhang et al. 2024, arXiv:2409.07146)."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer, RecurrentOptions
from linear_transformer.nn.parameters import vector
from linear_transformer.ops import checks
from linear_transformer.ops.decay import decayed_attention


@mechanism(
    "gsa",
    meaning="softmax attention to slots with forget gates",
    source="Zhang et al. 2024, arXiv:2409.07146, section 3",
    encodes_order=True,
)
class GatedSlotAttention(RecurrentMixer):
    """Softmax attention to M slots per head, each with a key, a value and a forget gate.

        a_t = sigmoid(W_A x_t)^(1 / tau)              q_t, k_t, v_t = swish(W_{Q,K,V} x_t)
        K_t = diag(a_t) K_{t-1} + (1 - a_t) k_t^T     V_t = diag(a_t) V_{t-1} + (1 - a_t) v_t^T
        o_t = V_t^T softmax(K_t q_t)                  y_t = W_O norm(swish(o_t))

    The RMS norm is over the features of all heads, after the swish, as in the released layer.

    Attributes:
      slots: M, the number of slots per head.
      temperature: tau; a larger tau forgets more slowly.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        slots: int = 64,
        temperature: float = 8.0,
        rngs: nnx.Rngs,
        **options: Unpack[RecurrentOptions],
    ):
        checks.counts(slots=slots)
        checks.positive(temperature=temperature)
        super().__init__(width, heads, bias=False, **options)
        self.output = self._output_layer(rngs)
        self.slots = slots
        self.temperature = temperature
        self.query = self._linear(width, rngs)
        self.key = self._linear(width, rngs)
        self.value = self._linear(width, rngs)
        self.forget = self._linear(heads * slots, rngs)
        self.norm = nnx.RMSNorm(
            width, epsilon=1e-5, scale_metadata=vector("heads"), dtype=self.dtype, rngs=rngs
        )

    def _init_sums(self, batch_size):
        shape = (batch_size, self.heads, self.slots, self.value_width)
        values = jnp.zeros(shape, self._state_dtype)
        return {"keys": values.mT, "values": values}  # K_t^T and V_t, which are equally wide

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for both states; see `Mixer.flops_per_token`."""
        del context
        return 8 * self.slots * self.width

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        sums = {} if sums is None else sums
        *projected, forget = self._by_head(x, self.query, self.key, self.value, self.forget)
        q, k, v = map(jax.nn.silu, projected)
        log_decay = jax.nn.log_sigmoid(forget.astype(self._state_dtype)) / self.temperature
        write = -jnp.expm1(log_decay).astype(v.dtype)  # 1 - a_t
        options = self._recurrence(segment_ids)
        scores, keys = decayed_attention(
            q,
            k,
            write,
            None,
            log_value_decay_BTHV=log_decay,
            initial_state=sums.get("keys"),
            **options,
        )
        weights = jax.nn.softmax(scores.astype(self._state_dtype)).astype(v.dtype)
        o, values = decayed_attention(
            weights, write, v, log_decay, initial_state=sums.get("values"), **options
        )
        return self.norm(jax.nn.silu(merge_heads(o))), {"keys": keys, "values": values}, past
