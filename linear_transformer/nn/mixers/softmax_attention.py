"""Multi-head softmax attention, the baseline, with a KV cache or a sliding window."""

from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from linear_transformer.nn.layers.linear import Linear, merge_heads, split_heads
from linear_transformer.nn.layers.positions import rotate
from linear_transformer.nn.mixers.base import MixerState, checked, head_width, require_causal
from linear_transformer.nn.mixers.mechanism import Mechanism
from linear_transformer.ops import segments
from linear_transformer.ops.softmax import Direction, Form, softmax_attention
from linear_transformer.types import Activations, Positions, SegmentIds


class SoftmaxAttention(nnx.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Attributes:
      direction: "causal" or "bidirectional"; only a causal mixer has a state.
      window: number of tokens that a token attends to, itself included; None is all.
      cache_capacity: tokens that the decoding state can hold if there is no window.  The caller
        must not exceed it: further tokens would overwrite the last ones.
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
        form: str = "auto",
        output_scale: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.key_width = head_width(width, heads)
        if direction not in get_args(Direction):
            choices = ", ".join(get_args(Direction))
            raise ValueError(f"direction is {direction!r}; choose one of {choices}")
        if window is not None and direction != "causal":
            raise ValueError(f"window is causal, and direction is {direction!r}")
        if window is not None and window < 1:
            raise ValueError(f"window is {window}; it must be positive")
        if cache_capacity < 1:
            raise ValueError(f"cache_capacity is {cache_capacity}; it must be positive")
        if form not in get_args(Form):
            raise ValueError(f"form is {form!r}; choose one of {', '.join(get_args(Form))}")
        if rotary and self.key_width % 2:
            raise ValueError(f"rotary positions need an even key width, not {self.key_width}")
        self.direction = direction
        self.window = window
        self.cache_capacity = cache_capacity
        self.rotary = rotary
        self.form = form
        self.dtype = dtype
        axes = ("embed", "heads")
        options = {"use_bias": bias, "dtype": dtype, "rngs": rngs}
        self.query = Linear(width, width, axes=axes, **options)
        self.key = Linear(width, width, axes=axes, **options)
        self.value = Linear(width, width, axes=axes, **options)
        init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "normal")
        self.output = Linear(width, width, axes=axes[::-1], kernel_init=init, **options)

    @property
    def capacity(self) -> int | None:
        """Most tokens that a state can process; None is no limit."""
        return self.cache_capacity if self.window is None else None

    @property
    def slots(self) -> int:
        """Number of keys in the state: the capacity, or the window - 1 tokens before the next."""
        return self.cache_capacity if self.window is None else max(self.window - 1, 1)

    def init_state(self, batch_size: int) -> MixerState:
        require_causal(self.direction)
        shape = (batch_size, self.slots, self.heads, self.key_width)
        return {
            "keys": jnp.zeros(shape, self.dtype),
            "values": jnp.zeros(shape, self.dtype),
            "segments": jnp.zeros((batch_size, self.slots), jnp.int32),
            "length": jnp.zeros((batch_size,), jnp.int32),  # tokens seen so far
            "segment": jnp.zeros((batch_size,), jnp.int32),  # of the last token
        }

    @checked
    def __call__(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        positions: Positions | None = None,
    ) -> tuple[Activations, MixerState | None]:
        q_BTHK = split_heads(self.query(x_BTD), self.heads)
        k_BTHK = split_heads(self.key(x_BTD), self.heads)
        v_BTHK = split_heads(self.value(x_BTD), self.heads)
        if self.rotary:
            q_BTHK, k_BTHK = rotate(q_BTHK, positions), rotate(k_BTHK, positions)
        if state is None:
            o_BTHK = softmax_attention(
                q_BTHK,
                k_BTHK,
                v_BTHK,
                direction=self.direction,
                window=self.window,
                segment_ids_BT=segment_ids,
                form=self.form,
            )
        else:
            require_causal(self.direction)
            o_BTHK, state = self._attend_to_cache(q_BTHK, k_BTHK, v_BTHK, segment_ids, state)
        return self.output(merge_heads(o_BTHK)), state

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token at the mean context; see `Mixer.flops_per_token`."""
        whole = context if self.direction == "bidirectional" else (context + 1) / 2
        seen = whole if self.window is None else min(self.window, whole)
        return int(4 * self.heads * self.key_width * seen)

    def _attend_to_cache(self, q, k, v, segment_ids, state):
        time = q.shape[1]
        if segment_ids is None:
            segment_ids = jnp.broadcast_to(state["segment"][:, None], q.shape[:2])
        new = {"keys": k, "values": v, "segments": segment_ids}
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
        run_BS = segments.run_index(held["segments"])  # segment ids may repeat
        if self.window is None:
            run_BT = jnp.take_along_axis(run_BS, positions_BT, axis=1, mode="clip")
        else:
            run_BT = run_BS[:, self.slots :]
        o = softmax_attention(
            q,
            held["keys"],
            held["values"],
            window=self.window,
            segment_ids_BT=run_BT,
            key_segment_ids_BS=run_BS,
            query_positions_BT=positions_BT,
            key_positions_BS=key_positions,
            form=self.form,
        )
        return o, kept | {"length": state["length"] + time, "segment": segment_ids[:, -1]}


MECHANISMS = (
    Mechanism(
        name="softmax",
        mixer=SoftmaxAttention,
        meaning="softmax attention with a key-value cache, or over a sliding window",
        source="Vaswani et al. 2017, arXiv:1706.03762, equation 1",
        options={"cache_capacity": 1024},
        rotary=True,
        bidirectional={},
        causal_only=("window", "cache_capacity"),
    ),
)
