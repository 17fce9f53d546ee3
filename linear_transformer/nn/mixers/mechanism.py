"""Mechanism: a mixer by name, with the properties that models and configs use."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from linear_transformer.nn.mixers.base import Mixer

MixerType = TypeVar("MixerType", bound=type[Mixer])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Mixer by name; a call constructs the mixer.

    The decorator `mechanism` makes a mechanism of a mixer, and `registry.MIXERS` collects the
    mechanisms of all mixers of this folder.

    Attributes:
      name: name in a layer pattern, and after the colon in `--config=FILE:NAME`.
      mixer: constructor, `mixer(width, heads, *, output_scale, dtype, rngs, **options)`.
      meaning: description of what the mechanism computes, in one line.
      source: authors, year and arXiv number of the paper, and the place in the paper.
      defaults: defaults of options that differ from the defaults of the constructor.
      options: options that configs write out.
      encodes_order: whether the mixer depends on the order of tokens and needs no positions; a
        string names the option that must be set for this.
      uses_depth: whether the constructor takes `depth`, l / L for layer l (from 0) of L.
      rotary: whether the constructor takes `rotary`, rotary positions of queries and keys.
      feed_forward_ratio: feed-forward width over model width; None is 4, or 8/3 with a gate.
      layers: number of layers that replace one layer of attention and feed-forward.
      length_option: option that is set to the longest row of the data if its value is None.
      limits_length: whether the value of `length_option` bounds the length of the input.
      causal: whether the mixer can be causal.
      bidirectional: options besides `direction` that make the mixer bidirectional; None for a mixer
        that is causal only.
      causal_only: options that a bidirectional mixer does not take.
    """

    name: str
    mixer: Callable[..., Mixer]
    meaning: str
    source: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    encodes_order: bool | str = False
    uses_depth: bool = False
    rotary: bool = False
    feed_forward_ratio: int | float | None = None
    layers: int = 1
    length_option: str | None = None
    limits_length: bool = False
    causal: bool = True
    bidirectional: Mapping[str, Any] | None = None
    causal_only: tuple[str, ...] = ()

    def __call__(self, width: int, heads: int, **options: Any) -> Mixer:
        """Returns the mixer for a model of this width.

        Raises:
          ValueError: the mixer does not take these options.
        """
        return self.mixer(width, heads, **{**self.defaults, **options})

    def needs_no_positions(self, options: Mapping[str, Any]) -> bool:
        """Returns whether the mixer with these options depends on the order of tokens by itself."""
        if isinstance(self.encodes_order, str):
            return bool(options.get(self.encodes_order))
        return self.encodes_order

    def bidirectional_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options of the bidirectional mixer; no change if it is causal only."""
        if self.bidirectional is None:
            return dict(options)
        kept = {key: value for key, value in options.items() if key not in self.causal_only}
        return {**kept, **self.bidirectional, "direction": "bidirectional"}


def mechanism(name: str, **properties: Any) -> Callable[[MixerType], MixerType]:
    """Decorates a mixer as the mechanism with this name, before those it has already.

    Args:
      name: name of the mechanism.
      **properties: other attributes of `Mechanism`, except `mixer`.
    """

    def decorated(mixer: MixerType) -> MixerType:
        first = Mechanism(name=name, mixer=mixer, **properties)
        mixer.mechanisms = (first, *vars(mixer).get("mechanisms", ()))
        return mixer

    return decorated
