"""A mechanism: a mixer by its name, with the facts that the rest of the project reads."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from linear_transformer.nn.mixers.base import Mixer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mechanism:
    """A mixer by its name, called as the mixer's constructor is.

    A file of this folder lists its mechanisms in `MECHANISMS`, and `registry.MIXERS` has those of
    all files.

    Attributes:
      name: in a layer pattern, and after the colon in `--config=FILE:NAME`.
      mixer: constructor, `mixer(width, heads, *, output_scale, dtype, rngs, **options)`.
      meaning: what the mechanism computes, in one line.
      source: authors, year and arXiv number of the paper, and where in the paper it is.
      defaults: options whose default under this name is not that of the constructor.
      options: options that a config writes down.
      knows_order: whether the mixer knows the order of the tokens and needs no positions; or the
        option of the mixer that has to be set for that.
      knows_depth: whether the constructor takes `depth`, l / L for layer l (from 0) of L.
      rotary: whether the constructor takes `rotary`, rotary positions of queries and keys.
      feed_forward_ratio: width of the feed-forward over the model's; None is 4, or 8/3 with a gate.
      layers: number of layers that take the place of one layer of attention and feed-forward.
      length_option: option that follows the longest row of the data where it is None.
      limits_length: whether no input may be longer than `length_option` says.
      causal: whether the mixer can be causal.
      bidirectional: options besides `direction` of a mixer that looks both ways; None where the
        mixer only looks back.
      causal_only: options that a mixer that looks both ways does not take.
    """

    name: str
    mixer: Callable[..., Mixer]
    meaning: str
    source: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    knows_order: bool | str = False
    knows_depth: bool = False
    rotary: bool = False
    feed_forward_ratio: int | float | None = None
    layers: int = 1
    length_option: str | None = None
    limits_length: bool = False
    causal: bool = True
    bidirectional: Mapping[str, Any] | None = None
    causal_only: tuple[str, ...] = ()

    def __call__(self, width: int, heads: int, **options: Any) -> Mixer:
        """The mixer for a model of this width.

        Raises:
          ValueError: the mixer does not take these options.
        """
        return self.mixer(width, heads, **{**self.defaults, **options})

    def needs_no_positions(self, options: Mapping[str, Any]) -> bool:
        """Whether the mixer with these options knows the order of the tokens."""
        if isinstance(self.knows_order, str):
            return bool(options.get(self.knows_order))
        return self.knows_order

    def both_ways(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with which the mixer looks both ways; unchanged where it only looks back."""
        if self.bidirectional is None:
            return dict(options)
        kept = {key: value for key, value in options.items() if key not in self.causal_only}
        return {**kept, **self.bidirectional, "direction": "bidirectional"}
