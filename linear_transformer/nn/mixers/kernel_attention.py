"""Base class of kernel attention: projections to queries, keys and values, and sums of features."""

from typing import Unpack

from flax import nnx

from linear_transformer.nn.layers.linear import merge_heads
from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.mixers.projected_mixer import ProjectionOptions
from linear_transformer.nn.mixers.recurrent_mixer import KeyedOptions, RecurrentMixer
from linear_transformer.types import (
    Activations,
    Keys,
    Outputs,
    Positions,
    Queries,
    SegmentIds,
    Values,
)


class KernelOptions(ProjectionOptions, KeyedOptions, total=False):
    """Options of every `KernelAttention`."""


class KernelAttention(RecurrentMixer):
    """Kernel attention: projections to q, k and v, a recurrence over sums, an output projection.

    A subclass defines `_attend(x, q, k, v, sums, segment_ids, positions) -> (o, sums)`.

    Attributes:
      direction: "causal", or "bidirectional", which has no decoding state.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, **options: Unpack[KernelOptions]):
        super().__init__(width, heads, **options)
        keys = heads * self.key_width
        self.query = self._linear(keys, rngs)
        self.key = self._linear(keys, rngs)
        self.value = self._linear(width, rngs)
        self.output = self._output_layer(rngs)

    @property
    def _state_shape(self):
        return self.key_width, self.value_width + 1

    def _mix(self, x, sums, past, segment_ids, positions):
        q, k, v = self._by_head(x, self.query, self.key, self.value)
        o, sums = self._attend(x, q, k, v, sums, segment_ids, positions)
        return merge_heads(o), sums, past

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
