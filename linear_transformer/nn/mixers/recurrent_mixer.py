"""Base class of recurrent mixers: checks, a state that is reset between segments, output layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import Linear
from linear_transformer.nn.layers.short_convolution import ShortConvolution
from linear_transformer.nn.layers.token_shift import TokenShift
from linear_transformer.nn.mixers.base import MixerState, checked, require_causal, reset_rows
from linear_transformer.ops import segments
from linear_transformer.ops.recurrence import FORMS
from linear_transformer.types import Activations, Positions, SegmentIds


class RecurrentMixer(nnx.Module):
    """Recurrence over sums, and an output projection.

    A subclass defines `_mix(x, sums, past, segment_ids, positions) -> (o, sums, past)`, with the
    heads of o merged.  The recurrent state `sums` is (B, H, K, V) unless a subclass overrides
    `_init_sums`; `past` is the state of the `local` layer, or None.

    Attributes:
      key_width, value_width: features per head; the state has key_width x value_width per head.
      form, chunk_size: arguments of the recurrence, see `ops.decay.decayed_attention`.
    """

    capacity: int | None = None  # most tokens that a state can process; None is no limit
    direction = "causal"
    local: ShortConvolution | TokenShift | None = None

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int,
        value_width: int,
        form: str,
        chunk_size: int | None,
        output_scale: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if form not in FORMS:
            raise ValueError(f"form is {form!r}; choose one of {', '.join(FORMS)}")
        if key_width < 1:
            raise ValueError(f"key_width is {key_width}; it must be positive")
        if value_width < 1:
            raise ValueError(f"the value width is {value_width}; it must be positive")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be positive")
        self.width = width
        self.heads = heads
        self.key_width = key_width
        self.value_width = value_width
        self.form = form
        self.chunk_size = chunk_size
        self.dtype = jnp.dtype(dtype)
        init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "normal")
        self.output = Linear(
            heads * value_width,
            width,
            axes=("heads", "embed"),
            use_bias=False,
            dtype=dtype,
            kernel_init=init,
            rngs=rngs,
        )

    def init_state(self, batch_size: int) -> MixerState:
        require_causal(self.direction)
        state = {
            "sums": self._init_sums(batch_size),
            "segment": jnp.zeros((batch_size,), jnp.int32),
        }
        if self.local is not None:
            state["past"] = self.local.init_state(batch_size)
        return state

    @checked
    def __call__(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        positions: Positions | None = None,
    ) -> tuple[Activations, MixerState | None]:
        sums = past = None
        if state is not None:
            require_causal(self.direction)
            sums, past = state["sums"], state.get("past")
            if segment_ids is not None:
                sums = reset_rows(sums, ~segments.continues(state["segment"], segment_ids))
        o_BTI, sums, past = self._mix(x_BTD, sums, past, segment_ids, positions)
        y_BTD = self._project(o_BTI)
        if state is None:
            return y_BTD, None
        last = state["segment"] if segment_ids is None else segment_ids[:, -1]
        new_state = {"sums": sums, "segment": last}
        return y_BTD, new_state if past is None else new_state | {"past": past}

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for k v^T and q^T S; see `Mixer.flops_per_token`."""
        del context  # the cost of a token does not depend on its position
        return 4 * self.heads * self.key_width * self._columns

    @property
    def _columns(self) -> int:
        """Number of columns of a head's state: V, or V + 1 with a normaliser."""
        return self.value_width

    @property
    def _state_dtype(self) -> jnp.dtype:
        return jnp.promote_types(self.dtype, jnp.float32)

    def _init_sums(self, batch_size: int) -> MixerState:
        shape = (batch_size, self.heads, self.key_width, self._columns)
        return jnp.zeros(shape, self._state_dtype)

    def _recurrence(self, segment_ids: SegmentIds | None) -> dict:
        """Returns the arguments that every recurrence takes."""
        return {"segment_ids_BT": segment_ids, "form": self.form, "chunk_size": self.chunk_size}

    def _linear(self, features: int, rngs: nnx.Rngs, **options) -> Linear:
        """Makes a projection of the input to the heads, without bias by default."""
        options = {"axes": ("embed", "heads"), "use_bias": False} | options
        return Linear(self.width, features, dtype=self.dtype, rngs=rngs, **options)

    def _project(self, o_BTI: Float[Array, "B T I"]) -> Activations:
        return self.output(o_BTI)

    def _mix(
        self,
        x_BTD: Activations,
        sums: MixerState | None,
        past: MixerState | None,
        segment_ids: SegmentIds | None,
        positions: Positions | None,
    ) -> tuple[Activations, MixerState, MixerState | None]:
        raise NotImplementedError


class LowRank(nnx.Module):
    """Low-rank map `W2 act(W1 x)`, for gates that would have too many parameters at full rank.

    Attributes:
      axis: logical axis of the output, see `nn.parameters.Declaration`.
    """

    def __init__(
        self,
        width: int,
        rank: int,
        features: int,
        *,
        axis: str = "heads",
        activation=None,
        use_bias: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.down = Linear(
            width, rank, axes=("embed", None), use_bias=False, dtype=dtype, rngs=rngs
        )
        self.up = Linear(
            rank, features, axes=(None, axis), use_bias=use_bias, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows E"]:
        h = self.down(x)
        return self.up(h if self.activation is None else self.activation(h))


def silu_convolution(
    convolution: ShortConvolution,
    bias_D: nnx.Param,
    parts: Sequence[Float[Array, "B T _"]],
    past: MixerState | None,
    segment_ids: SegmentIds | None,
) -> tuple[tuple[Float[Array, "B T _"], ...], MixerState | None]:
    """Applies silu(convolution + bias) to features in several arrays, as in Mamba."""
    parts, past = convolution.side_by_side(parts, past, segment_ids=segment_ids)
    ends = np.cumsum([x.shape[-1] for x in parts])[:-1]
    biases = jnp.split(bias_D[...].astype(parts[0].dtype), ends)
    return tuple(jax.nn.silu(x + b) for x, b in zip(parts, biases, strict=True)), past
