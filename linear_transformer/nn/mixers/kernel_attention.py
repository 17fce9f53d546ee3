"""Base class of kernel attention: projections, heads, and sums that are reset between segments."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from linear_transformer.nn.layers.linear import Linear, merge_heads, split_heads
from linear_transformer.nn.mixers.base import (
    MixerState,
    checked,
    head_width,
    require_causal,
    reset_rows,
)
from linear_transformer.ops import segments
from linear_transformer.ops.recurrence import FORMS
from linear_transformer.types import (
    Activations,
    Keys,
    Outputs,
    Positions,
    Queries,
    SegmentIds,
    Values,
)

DIRECTIONS = ("causal", "bidirectional")


class KernelAttention(nnx.Module):
    """Kernel attention: projections to q, k and v, a recurrence over sums, an output projection.

    A subclass defines `_init_sums(batch_size)`, a pytree of zeros with the batch as first axis, and
    `_attend(x, q, k, v, sums, segment_ids, positions) -> (o, sums)`.

    Attributes:
      key_width: features of queries and keys per head; None is width / heads.
      direction: "causal", or "bidirectional", which has no decoding state.
      form, chunk_size: arguments of the causal recurrence, see `ops.decay.decayed_attention`.
    """

    capacity: int | None = None  # most tokens that a state can process; None is no limit

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None,
        direction: str,
        bias: bool,
        form: str,
        chunk_size: int | None,
        output_scale: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.value_width = head_width(width, heads)
        self.key_width = self.value_width if key_width is None else key_width
        if direction not in DIRECTIONS:
            raise ValueError(f"direction is {direction!r}; choose one of {', '.join(DIRECTIONS)}")
        if form not in FORMS:
            raise ValueError(f"form is {form!r}; choose one of {', '.join(FORMS)}")
        if self.key_width < 1:
            raise ValueError(f"key_width is {self.key_width}; it must be positive")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be positive")
        self.direction = direction
        self.form = form
        self.chunk_size = chunk_size
        self.dtype = jnp.dtype(dtype)
        keys = heads * self.key_width
        axes = ("embed", "heads")
        options = {"use_bias": bias, "dtype": dtype, "rngs": rngs}
        self.query = Linear(width, keys, axes=axes, **options)
        self.key = Linear(width, keys, axes=axes, **options)
        self.value = Linear(width, width, axes=axes, **options)
        init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "normal")
        self.output = Linear(width, width, axes=axes[::-1], kernel_init=init, **options)

    def init_state(self, batch_size: int) -> MixerState:
        require_causal(self.direction)
        return {
            "sums": self._init_sums(batch_size),
            "segment": jnp.zeros((batch_size,), jnp.int32),
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
        if state is not None:
            require_causal(self.direction)
        q_BTHK = split_heads(self.query(x_BTD), self.heads)
        k_BTHK = split_heads(self.key(x_BTD), self.heads)
        v_BTHV = split_heads(self.value(x_BTD), self.heads)
        sums = None if state is None else state["sums"]
        if state is not None and segment_ids is not None:
            sums = reset_rows(sums, ~segments.continues(state["segment"], segment_ids))
        o_BTHV, sums = self._attend(x_BTD, q_BTHK, k_BTHK, v_BTHV, sums, segment_ids, positions)
        y_BTD = self.output(merge_heads(o_BTHV))
        if state is None:
            return y_BTD, None
        last = state["segment"] if segment_ids is None else segment_ids[:, -1]
        return y_BTD, {"sums": sums, "segment": last}

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for k v^T and q^T S; see `Mixer.flops_per_token`."""
        del context  # the cost of a token does not depend on its position
        return 4 * self.heads * self._features * (self.value_width + 1)

    @property
    def _features(self) -> int:
        """Number of rows of a head's state."""
        return self.key_width

    @property
    def _state_dtype(self) -> jnp.dtype:
        return jnp.promote_types(self.dtype, jnp.float32)

    def _init_sums(self, batch_size: int) -> MixerState:
        shape = (batch_size, self.heads, self._features, self.value_width + 1)
        return jnp.zeros(shape, self._state_dtype)

    def _recurrence(self, segment_ids: SegmentIds | None) -> dict:
        """Returns the arguments that every causal recurrence takes."""
        return {"segment_ids_BT": segment_ids, "form": self.form, "chunk_size": self.chunk_size}

    def _attend(
        self,
        x_BTD: Activations,
        q_BTHK: Queries,
        k_BTHK: Keys,
        v_BTHV: Values,
        sums: MixerState | None,
        segment_ids: SegmentIds | None,
        positions: Positions | None,
    ) -> tuple[Outputs, MixerState]:
        raise NotImplementedError


def check_positive(name: str, value: int | float) -> None:
    """Raises a ValueError unless the option `name` is positive."""
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be positive")
