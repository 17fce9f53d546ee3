"""Base class of recurrent mixers: a state that is reset between segments."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.nn.layers.linear import Linear
from linear_transformer.nn.layers.short_convolution import ShortConvolution
from linear_transformer.nn.layers.token_shift import TokenShift
from linear_transformer.nn.mixers.base import MixerState, head_width, reset_rows
from linear_transformer.nn.mixers.projected_mixer import (
    LayerOptions,
    ProjectedMixer,
    ProjectionOptions,
)
from linear_transformer.ops import checks, segments
from linear_transformer.ops.recurrence import FORMS
from linear_transformer.types import Activations, Positions, SegmentIds


class RecurrentOptions(LayerOptions, total=False):
    """Options of every `RecurrentMixer`."""

    form: str
    chunk_size: int | None


class KeyedOptions(RecurrentOptions, total=False):
    """Options of every `RecurrentMixer` with keys of any width."""

    key_width: int | None


class RecurrentMixer(ProjectedMixer):
    """Recurrence over sums, and an output projection.

    A subclass defines `_mix(x, sums, past, segment_ids, positions) -> (o, sums, past)`, with the
    heads of o merged.  The recurrent state `sums` is (B, H, K, V) unless a subclass overrides
    `_init_sums`; `past` is the state of the `local` layer, or None.

    Attributes:
      key_width: features of queries and keys per head; None is width / heads.
      value_width: features of values per head; None is width / heads.
      form, chunk_size: see `ops.decay.decayed_attention`.
    """

    forms: tuple[str, ...] = FORMS
    local: ShortConvolution | TokenShift | None = None

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        value_width: int | None = None,
        form: str = "auto",
        chunk_size: int | None = None,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        checks.choice("form", form, self.forms)
        checks.counts(key_width=key_width, value_width=value_width, chunk_size=chunk_size)
        self.key_width = head_width(width, heads) if key_width is None else key_width
        self.value_width = head_width(width, heads) if value_width is None else value_width
        self.form = form
        self.chunk_size = chunk_size

    def _init_state(self, batch_size):
        state = {
            "sums": self._init_sums(batch_size),
            "segment": jnp.zeros((batch_size,), jnp.int32),
        }
        if self.local is not None:
            state["past"] = self.local.init_state(batch_size)
        return state

    def _forward(self, x_BTD, state, segment_ids, positions, **values):
        sums = past = None
        if state is not None:
            sums, past = state["sums"], state.get("past")
            if segment_ids is not None:
                sums = reset_rows(sums, ~segments.continues(state["segment"], segment_ids))
        o_BTI, sums, past = self._mix(x_BTD, sums, past, segment_ids, positions, **values)
        y_BTD = self._project(o_BTI)
        if state is None:
            return y_BTD, None
        last = state["segment"] if segment_ids is None else segment_ids[:, -1]
        new_state = {"sums": sums, "segment": last}
        return y_BTD, new_state if past is None else new_state | {"past": past}

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for k v^T and q^T S; see `Mixer.flops_per_token`."""
        del context  # the cost of a token does not depend on its position
        rows, columns = self._state_shape
        return 4 * self.heads * rows * columns

    @property
    def _state_shape(self) -> tuple[int, int]:
        """Shape of the state of a head: (K, V), or (K, V + 1) with a normaliser."""
        return self.key_width, self.value_width

    @property
    def _state_dtype(self) -> jnp.dtype:
        return jnp.promote_types(self.dtype, jnp.float32)

    def _init_sums(self, batch_size: int) -> MixerState:
        return jnp.zeros((batch_size, self.heads, *self._state_shape), self._state_dtype)

    def _recurrence(self, segment_ids: SegmentIds | None) -> dict:
        """Returns the arguments that every recurrence takes."""
        return {"segment_ids_BT": segment_ids, "form": self.form, "chunk_size": self.chunk_size}

    def _project(self, o_BTI: Float[Array, "B T I"]) -> Activations:
        return self.output(o_BTI)

    def _mix(
        self,
        x_BTD: Activations,
        sums: MixerState | None,
        past: MixerState | None,
        segment_ids: SegmentIds | None,
        positions: Positions | None,
        **values: Float[Array, "B T I"] | None,
    ) -> tuple[Activations, MixerState, MixerState | None]:
        raise NotImplementedError


_LECUN = nnx.initializers.lecun_normal()  # as `nnx.Linear`


class LowRank(nnx.Module):
    """Low-rank map `W2 act(W1 x)`, for gates that would have too many parameters at full rank.

    Attributes:
      axis: logical axis of the output, see `nn.parameters.Declaration`.
      down_init, up_init: initializers of W1 and W2.
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
        down_init: nnx.Initializer = _LECUN,
        up_init: nnx.Initializer = _LECUN,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        given = {"dtype": dtype, "rngs": rngs}
        self.down = Linear(
            width, rank, axes=("embed", None), use_bias=False, kernel_init=down_init, **given
        )
        self.up = Linear(
            rank, features, axes=(None, axis), use_bias=use_bias, kernel_init=up_init, **given
        )

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows E"]:
        h = self.down(x)
        return self.up(h if self.activation is None else self.activation(h))
