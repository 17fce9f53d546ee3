"""Gated slot attention, GSA (Zhang et al. 2024, arXiv:2409.07146)."""

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.mechanism import Mechanism
from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer
from linear_transformer.nn.parameters import vector
from linear_transformer.ops.decay import decayed_attention


class GatedSlotAttention(RecurrentMixer):
    """Softmax attention to M slots per head, each with a key, a value and a forget gate.

        a_t = sigmoid(W_A x_t)^(1 / tau)              q_t, k_t, v_t = swish(W_{Q,K,V} x_t)
        K_t = diag(a_t) K_{t-1} + (1 - a_t) k_t^T     V_t = diag(a_t) V_{t-1} + (1 - a_t) v_t^T
        o_t = V_t^T softmax(K_t q_t)                  y_t = W_O norm(swish(o_t))

    The RMS norm is over the features of all heads, after the swish, as in the released layer.

    Attributes:
      slots: M, the number of slots per head.
      temperature: tau; a larger tau forgets more slowly.
      form, chunk_size: see `ops.decay.decayed_attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        slots: int = 64,
        temperature: float = 8.0,
        form: str = "auto",
        chunk_size: int | None = None,
        output_scale: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if slots < 1:
            raise ValueError(f"slots is {slots}; it must be positive")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be positive")
        super().__init__(
            width,
            heads,
            key_width=head_width(width, heads),
            value_width=head_width(width, heads),
            form=form,
            chunk_size=chunk_size,
            output_scale=output_scale,
            dtype=dtype,
            rngs=rngs,
        )
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
        layers = (self.query, self.key, self.value)
        q, k, v = (jax.nn.silu(split_heads(layer(x), self.heads)) for layer in layers)
        forget = split_heads(self.forget(x), self.heads).astype(self._state_dtype)
        log_decay = jax.nn.log_sigmoid(forget) / self.temperature
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


MECHANISMS = (
    Mechanism(
        name="gsa",
        mixer=GatedSlotAttention,
        meaning="softmax attention to slots with forget gates",
        source="Zhang et al. 2024, arXiv:2409.07146, section 3",
        knows_order=True,
    ),
)
