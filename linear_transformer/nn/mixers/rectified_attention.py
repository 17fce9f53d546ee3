"""Multi-head rectified linear attention, ReLA (Zhang, Titov and Sennrich 2021)."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.positions import rotate
from linear_transformer.nn.mixers import token_cache
from linear_transformer.nn.mixers.cached_attention import CachedAttention, CacheOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.nn.parameters import vector
from linear_transformer.ops.rectified import rectified_attention
from linear_transformer.ops.recurrence import accumulation_dtype


class GatedRMSNorm(nnx.Module):
    """Norm `scale * x / RMS(x) * sigmoid(gate * x)` (equation 8), with statistics in fp32."""

    def __init__(self, width: int, *, epsilon: float = 1e-6, dtype: jnp.dtype):
        self.epsilon = epsilon
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), **vector("heads"))
        self.gate = nnx.Param(jnp.zeros((width,), jnp.float32), **vector("heads"))

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        x = x.astype(accumulation_dtype(x))
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        y = self.scale[...] * x * jax.lax.rsqrt(mean_square + self.epsilon)
        return (y * jax.nn.sigmoid(self.gate[...] * x)).astype(self.dtype)


@mechanism(
    "rela",
    meaning="attention with ReLU in place of softmax, and a gated norm; configs set a window",
    source="Zhang et al. 2021, arXiv:2104.07012, equation 5",
    options={"window": 64},
    rotary=True,
    bidirectional={},
    causal_only=("window", "cache_capacity"),
)
class RectifiedAttention(CachedAttention):
    """Attention with weights max(q.k / sqrt(K), 0) and a norm that sets the scale of the output."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, **options: Unpack[CacheOptions]):
        super().__init__(width, heads, **options)
        self.projection = self._linear(3 * width, rngs)
        self.norm = GatedRMSNorm(width, dtype=self.dtype)
        self.output = self._output_layer(rngs)

    def _init_state(self, batch_size):
        shape = (self.heads, self.key_width)
        return token_cache.init_cache(
            batch_size, self.slots, {"keys": shape, "values": shape}, self.dtype
        )

    def _forward(self, x_BTD, state, segment_ids, positions):
        parts = jnp.split(self.projection(x_BTD), 3, axis=-1)
        q_BTHK, k_BSHK, v_BSHV = (split_heads(x, self.heads) for x in parts)
        if self.rotary:
            q_BTHK, k_BSHK = rotate(q_BTHK, positions), rotate(k_BSHK, positions)
        where: dict[str, Any] = {"segment_ids_BT": segment_ids}
        if state is not None:
            new, window = {"keys": k_BSHK, "values": v_BSHV}, self.window is not None
            held, state = token_cache.write(state, new, segment_ids, window=window)
            k_BSHK, v_BSHV, where = held.arrays["keys"], held.arrays["values"], held.where
        o_BTHV = rectified_attention(
            q_BTHK,
            k_BSHK,
            v_BSHV,
            direction=self.direction,
            window=self.window,
            **where,
        )
        return self.output(self.norm(merge_heads(o_BTHV))), state
