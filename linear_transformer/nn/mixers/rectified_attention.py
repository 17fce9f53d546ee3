"""Multi-head rectified linear attention, ReLA (Zhang, Titov and Sennrich 2021)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import Linear, merge_heads, split_heads
from linear_transformer.nn.layers.positions import rotate
from linear_transformer.nn.mixers import token_cache
from linear_transformer.nn.mixers.base import MixerState, checked, head_width, require_causal
from linear_transformer.nn.mixers.mechanism import Mechanism
from linear_transformer.nn.parameters import vector
from linear_transformer.ops.rectified import DIRECTIONS, rectified_attention
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import Activations, Positions, SegmentIds


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


class RectifiedAttention(nnx.Module):
    """Attention with weights max(q.k / sqrt(K), 0) and a norm that sets the scale of the output.

    Attributes:
      direction: "causal" or "bidirectional"; only a causal mixer has a state.
      window: number of tokens that a token attends to, itself included; None is all.
      cache_capacity: tokens that the decoding state can hold if there is no window; older tokens
        are dropped.
      rotary: whether queries and keys are rotated by position.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        direction: str = "causal",
        window: int | None = None,
        cache_capacity: int = 1024,
        rotary: bool = False,
        bias: bool = True,
        output_scale: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.key_width = head_width(width, heads)
        if direction not in DIRECTIONS:
            raise ValueError(f"direction is {direction!r}; choose one of {', '.join(DIRECTIONS)}")
        if window is not None and direction != "causal":
            raise ValueError(f"window is causal, and direction is {direction!r}")
        if window is not None and window < 1:
            raise ValueError(f"window is {window}; it must be positive")
        if cache_capacity < 1:
            raise ValueError(f"cache_capacity is {cache_capacity}; it must be positive")
        if rotary and self.key_width % 2:
            raise ValueError(f"rotary positions need an even key width, not {self.key_width}")
        self.direction = direction
        self.window = window
        self.cache_capacity = cache_capacity
        self.rotary = rotary
        self.dtype = jnp.dtype(dtype)
        axes = ("embed", "heads")
        options = {"use_bias": bias, "dtype": dtype, "rngs": rngs}
        self.projection = Linear(width, 3 * width, axes=axes, **options)
        self.norm = GatedRMSNorm(width, dtype=self.dtype)
        init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "normal")
        self.output = Linear(width, width, axes=axes[::-1], kernel_init=init, **options)

    @property
    def capacity(self) -> int | None:
        """Most tokens that a state can process; None is no limit."""
        return self.cache_capacity if self.window is None else None

    def init_state(self, batch_size: int) -> MixerState:
        require_causal(self.direction)
        slots = self.cache_capacity if self.window is None else max(self.window - 1, 1)
        shape = (self.heads, self.key_width)
        return token_cache.init_cache(
            batch_size, slots, {"keys": shape, "values": shape}, self.dtype
        )

    @checked
    def __call__(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        positions: Positions | None = None,
    ) -> tuple[Activations, MixerState | None]:
        parts = jnp.split(self.projection(x_BTD), 3, axis=-1)
        q_BTHK, k_BSHK, v_BSHV = (split_heads(x, self.heads) for x in parts)
        if self.rotary:
            q_BTHK, k_BSHK = rotate(q_BTHK, positions), rotate(k_BSHK, positions)
        key_segments_BS, filled_BS = segment_ids, None
        if state is not None:
            require_causal(self.direction)
            held, key_segments_BS, filled_BS, state = token_cache.extend(
                state, {"keys": k_BSHK, "values": v_BSHV}, segment_ids
            )
            k_BSHK, v_BSHV = held["keys"], held["values"]
            segment_ids = key_segments_BS[:, -x_BTD.shape[1] :]
        o_BTHV = rectified_attention(
            q_BTHK,
            k_BSHK,
            v_BSHV,
            direction=self.direction,
            window=self.window,
            segment_ids_BT=segment_ids,
            key_segment_ids_BS=key_segments_BS,
            key_mask_BS=filled_BS,
        )
        return self.output(self.norm(merge_heads(o_BTHV))), state

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token at the mean context; see `Mixer.flops_per_token`."""
        whole = context if self.direction == "bidirectional" else (context + 1) / 2
        seen = whole if self.window is None else min(self.window, whole)
        return int(4 * self.heads * self.key_width * seen)


MECHANISMS = (
    Mechanism(
        name="rela",
        mixer=RectifiedAttention,
        meaning="attention with ReLU in place of softmax, and a gated norm; configs set a window",
        source="Zhang et al. 2021, arXiv:2104.07012, equation 5",
        options={"window": 64},
        rotary=True,
        bidirectional={},
        causal_only=("window", "cache_capacity"),
    ),
)
