"""Multi-head softmax attention, the baseline, with a KV cache or a sliding window."""

from typing import Unpack, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.positions import rotate
from linear_transformer.nn.mixers.cached_attention import CachedAttention, CacheOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.ops import checks, segments
from linear_transformer.ops.forgetting import log_sums
from linear_transformer.ops.non_finite import stop_non_finite_gradient
from linear_transformer.ops.softmax import Form, softmax_attention
from linear_transformer.types import Activations


class SoftmaxOptions(CacheOptions, total=False):
    """Options of every `SoftmaxAttention`."""

    key_value_heads: int | None
    qk_norm: bool
    output_gate: bool
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
class SoftmaxAttention(CachedAttention):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Attributes:
      key_value_heads: heads of keys and values, which query heads share in equal groups; None is
        one for each query head.  The state holds no others (Ainslie et al. 2023,
        arXiv:2305.13245).
      qk_norm: whether queries and keys of each head get an RMS norm with learned gains.  Rotary
        positions come after it (Henry et al. 2020, arXiv:2010.04245, with RMS as in Qwen3).
      output_gate: whether sigmoid(W_G x_t) multiplies each feature of the heads' outputs (Qiu et
        al. 2025, arXiv:2505.06708; Qwen3-Next).
      cache_capacity: tokens that the decoding state can hold if there is no window.  The caller
        must not exceed it: further tokens would overwrite the last ones.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        qk_norm: bool = False,
        output_gate: bool = False,
        form: str = "auto",
        rngs: nnx.Rngs,
        **options: Unpack[CacheOptions],
    ):
        checks.choice("form", form, get_args(Form))
        checks.positive(key_value_heads=key_value_heads)
        super().__init__(width, heads, **options)
        self.key_value_heads = heads if key_value_heads is None else key_value_heads
        if heads % self.key_value_heads:
            raise ValueError(f"key_value_heads={key_value_heads} does not divide heads ({heads})")
        self.form = form
        keys = self.key_value_heads * self.key_width
        self.query = self._linear(width, rngs)
        self.key = self._linear(keys, rngs)
        self.value = self._linear(keys, rngs)
        self.output = self._output_layer(rngs)
        self.query_norm = self._head_norm(heads) if qk_norm else None
        self.key_norm = self._head_norm(self.key_value_heads) if qk_norm else None
        self.gate = self._linear(width, rngs) if output_gate else None

    def _head_norm(self, heads: int) -> HeadNorm:
        return HeadNorm(heads, self.key_width, epsilon=1e-6, dtype=self.dtype)

    def _init_state(self, batch_size):
        shape = (batch_size, self.slots, self.key_value_heads, self.key_width)
        return {
            "keys": jnp.zeros(shape, self.dtype),
            "values": jnp.zeros(shape, self.dtype),
            "segments": jnp.zeros((batch_size, self.slots), jnp.int32),
            "length": jnp.zeros((batch_size,), jnp.int32),  # tokens seen so far
            "segment": jnp.zeros((batch_size,), jnp.int32),  # of the last token
        }

    def _forward(self, x_BTD, state, segment_ids, positions):
        q_BTHK = split_heads(self.query(x_BTD), self.heads)
        k_BTJK, v_BTJK = (
            split_heads(layer(x_BTD), self.key_value_heads) for layer in (self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHK, k_BTJK = self.query_norm(q_BTHK), self.key_norm(k_BTJK)
        if self.rotary:
            q_BTHK, k_BTJK = rotate(q_BTHK, positions), rotate(k_BTJK, positions)
        log_forget_BTH = self._log_forget(x_BTD)
        if state is None:
            sums = None if log_forget_BTH is None else log_sums(log_forget_BTH, segment_ids)
            o_BTHK = softmax_attention(
                q_BTHK,
                k_BTJK,
                v_BTJK,
                direction=self.direction,
                window=self.window,
                segment_ids_BT=segment_ids,
                query_log_sums_BTHX=sums,
                key_log_sums_BSHX=sums,
                form=self.form,
            )
        else:
            new = {"keys": k_BTJK, "values": v_BTJK}
            if log_forget_BTH is not None:
                new["log_forget"] = log_forget_BTH
            o_BTHK, state = self._attend_to_cache(q_BTHK, new, segment_ids, state)
        o_BTD = merge_heads(o_BTHK)
        if self.gate is not None:
            o_BTD = stop_non_finite_gradient(o_BTD) * jax.nn.sigmoid(self.gate(x_BTD))
        return self.output(o_BTD), state

    def _log_forget(self, x_BTD: Activations) -> Float[Array, "B T H"] | None:
        """Returns the log forget gates of the tokens; None does not forget."""
        del x_BTD
        return None

    def _attend_to_cache(self, q, new, segment_ids, state):
        time = q.shape[1]
        if segment_ids is None:
            segment_ids = jnp.broadcast_to(state["segment"][:, None], q.shape[:2])
        new = new | {"segments": segment_ids}
        positions_BT = state["length"][:, None] + jnp.arange(time)
        if self.window is None:  # slot i holds token i
            place = jax.vmap(lambda cache, x, i: lax.dynamic_update_slice_in_dim(cache, x, i, 0))
            held = {
                name: place(state[name], x.astype(state[name].dtype), state["length"])
                for name, x in new.items()
            }
            slots_M = jnp.arange(self.slots)
            length_B = state["length"] + time
            key_positions = jnp.where(slots_M < length_B[:, None], slots_M, -1)
            kept = held
        else:  # the cached tokens, then the new tokens
            held = {
                name: jnp.concatenate([state[name], x.astype(state[name].dtype)], axis=1)
                for name, x in new.items()
            }
            slots_M = jnp.arange(self.slots + time) - self.slots
            key_positions = jnp.maximum(state["length"][:, None] + slots_M, -1)
            kept = {name: x[:, -self.slots :] for name, x in held.items()}
        run_BS = segments.segment_index(held["segments"])  # segment ids may repeat

        def of_queries(x_BS):
            if self.window is not None:
                return x_BS[:, self.slots :]
            places = positions_BT.reshape(*positions_BT.shape, *[1] * (x_BS.ndim - 2))
            return jnp.take_along_axis(x_BS, places, axis=1, mode="clip")

        sums = query_sums = None
        if "log_forget" in held:  # sums of the held gates alone stay small in a long sequence
            sums = log_sums(held["log_forget"], run_BS)
            query_sums = of_queries(sums)
        o = softmax_attention(
            q,
            held["keys"],
            held["values"],
            window=self.window,
            segment_ids_BT=of_queries(run_BS),
            key_segment_ids_BS=run_BS,
            query_positions_BT=positions_BT,
            key_positions_BS=key_positions,
            query_log_sums_BTHX=query_sums,
            key_log_sums_BSHX=sums,
            form=self.form,
        )
        return o, kept | {"length": state["length"] + time, "segment": segment_ids[:, -1]}
