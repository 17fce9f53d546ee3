"""Base class of attention to the tokens of a cache, or of a sliding window."""

from typing import Unpack

from linear_transformer.nn.mixers.base import head_width
from linear_transformer.nn.mixers.projected_mixer import ProjectedMixer, ProjectionOptions
from linear_transformer.ops import checks


class CacheOptions(ProjectionOptions, total=False):
    """Options of every `CachedAttention`."""

    window: int | None
    cache_capacity: int
    rotary: bool


class CachedAttention(ProjectedMixer):
    """Attention with the keys and values of past tokens as its state.

    Attributes:
      key_width: features of queries, keys and values per head; None is width / heads.
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
        key_width: int | None = None,
        window: int | None = None,
        cache_capacity: int = 1024,
        rotary: bool = False,
        **options: Unpack[ProjectionOptions],
    ):
        super().__init__(width, heads, **options)
        checks.counts(key_width=key_width, window=window, cache_capacity=cache_capacity)
        self.key_width = head_width(width, heads) if key_width is None else key_width
        if window is not None and self.direction != "causal":
            raise ValueError(f"window is causal, and direction is {self.direction!r}")
        if rotary and self.key_width % 2:
            raise ValueError(f"rotary positions need an even key width, not {self.key_width}")
        self.window = window
        self.cache_capacity = cache_capacity
        self.rotary = rotary

    @property
    def capacity(self) -> int | None:
        """Most tokens that a state can process; None is no limit."""
        return self.cache_capacity if self.window is None else None

    @property
    def slots(self) -> int:
        """Number of keys in the state: the capacity, or the window."""
        return self.cache_capacity if self.window is None else self.window

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token at the mean context; see `Mixer.flops_per_token`."""
        whole = context if self.direction == "bidirectional" else (context + 1) / 2
        seen = whole if self.window is None else min(self.window, whole)
        return int(4 * self.heads * self.key_width * seen)
