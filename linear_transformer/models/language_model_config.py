"""Configuration of a language model with any layer pattern."""

import dataclasses
import fractions
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from linear_transformer.config import schema
from linear_transformer.config.schema import FRACTION, NOT_NEGATIVE, POSITIVE, Range
from linear_transformer.errors import ConfigError
from linear_transformer.nn.layers.feed_forward import ACTIVATIONS
from linear_transformer.nn.layers.norms import STREAM_NORMS
from linear_transformer.nn.layers.positions import POSITIONS
from linear_transformer.nn.layers.residuals import RESIDUALS
from linear_transformer.nn.mixers.registry import (
    MIXERS,
    check_options,
    feed_forward_ratio,
    longest_input,
    of_default,
)
from linear_transformer.nn.stack import REMAT_POLICIES

_MAX_POSITIONS = 1024  # if the length of the data is not known


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Configuration of `LanguageModel`; values of None or "auto" are replaced when it is made.

    Attributes:
      vocab_size: number of tokens E of the vocabulary.
      length: longest row of the data in tokens; None if it is not known.
      width: features D of a token.
      num_layers: number of blocks of a mixer and a feed-forward.
      num_heads: number of heads H; a divisor of the width.
      embedding_width: features of the embedding table, which a linear layer projects to the width;
        None is the width, without the layer (Lan et al. 2020, ALBERT, arXiv:1909.11942).
      pattern: mixer names, such as ("linear",) or ("linear", "softmax").
      pattern_fill: rule that extends the pattern to all layers: "repeat" repeats it, "stretch"
        gives each name an equal run of layers, "last" fills up with the last name.
      mixers: options of each mixer by name, passed to its constructor; an option for the length of
        the input follows the data if it is None.
      feed_forward_width: features of the feed-forward, 0 for none; None is width times the ratio.
      feed_forward_ratio: feed-forward width over model width; None is 4, or 8/3 if gated, or the
        ratio that the mixers need (0 for gated attention units).
      gated: whether the feed-forward has a gate.
      activation: activation of the feed-forward, in `nn.layers.feed_forward.ACTIVATIONS`.
      memory_layers: layers, from 0, with a product-key memory in place of the feed-forward
        (`nn.layers.product_key_memory`); with `scan_layers`, the same ones in every repetition of
        the pattern.
      memory_keys: sub-keys of each half of a key; a memory has the square of it as values.
      memory_top: values that each head of a memory reads.
      memory_heads: heads of a memory.
      positions: one of `nn.layers.positions.POSITIONS`; "auto" is "none" if a mixer depends on the
        order of tokens by itself, and else "sinusoidal".
      max_positions: rows of a learned table; None is the longest row of the data.
      norm: norm of the sub-layers, a name in `nn.layers.norms.STREAM_NORMS`.
      norm_position: "pre" (with a final norm) or "post".
      embedding_norm: norm of the embeddings, a name in `nn.layers.norms.STREAM_NORMS`, or "none".
      residual: residual connection of the sub-layers, in `nn.layers.residuals.RESIDUALS`.
      dropout: share of the features that are set to 0 in training.
      tied: whether the output layer is the transposed embedding.
      num_outputs: outputs per token of an untied output layer, for losses other than the cross
        entropy of tokens; 0 for the logits of the vocabulary.
      share_layers: whether all repetitions of the pattern have the same parameters, as in ALBERT.
      scan_layers: whether a scan runs the repetitions of the pattern, which compiles faster; None
        is True if there are several.
      remat: values that the backward pass recomputes: "none", "full", "dots" for all but matmuls.
      dtype: dtype of the activations; parameters are fp32.
    """

    vocab_size: int = schema.by_data()
    length: int | None = schema.by_data(None)
    width: int
    num_layers: int
    num_heads: int
    embedding_width: int | None = None
    pattern: tuple[str, ...] = ("linear",)
    pattern_fill: str = "repeat"
    mixers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    feed_forward_width: int | None = None
    feed_forward_ratio: float | None = None
    gated: bool = False
    activation: str = "gelu"
    memory_layers: tuple[int, ...] = ()
    memory_keys: int = 128
    memory_top: int = 32
    memory_heads: int = 4
    positions: str = "auto"
    max_positions: int | None = None
    norm: str = "layernorm"
    norm_position: str = "pre"
    embedding_norm: str = "none"
    residual: str = "sum"
    dropout: float = 0.0
    tied: bool = True
    num_outputs: int = 0
    share_layers: bool = False
    scan_layers: bool | None = False
    remat: str = "none"
    dtype: str = "float32"

    CHOICES: ClassVar[Mapping[str, Any]] = {
        "pattern_fill": ("repeat", "stretch", "last"),
        "activation": ACTIVATIONS,
        "positions": ("auto", *POSITIONS),
        "norm": STREAM_NORMS,
        "norm_position": ("pre", "post"),
        "embedding_norm": ("none", *STREAM_NORMS),
        "residual": RESIDUALS,
        "remat": REMAT_POLICIES,
        "dtype": schema.DTYPES,
    }
    RANGES: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("vocab_size", "length", "width", "num_heads", "max_positions"), POSITIVE),
        "embedding_width": POSITIVE,
        "num_layers": Range(least=1, most=100_000),
        **dict.fromkeys(("feed_forward_width", "feed_forward_ratio", "num_outputs"), NOT_NEGATIVE),
        "memory_layers": NOT_NEGATIVE,
        **dict.fromkeys(("memory_keys", "memory_top", "memory_heads"), POSITIVE),
        "dropout": FRACTION,
    }

    def __post_init__(self):
        schema.check(self, "model")
        self._check_mixers()
        for name, value in self._following().items():
            object.__setattr__(self, name, value)
        if self.num_outputs and self.tied:
            raise ConfigError(
                f"config.model.num_outputs is {self.num_outputs}; it must be 0, or positive with "
                "config.model.tied=False"
            )
        if self.positions == "rotary":
            for name in self.pattern:
                if not MIXERS[name].rotary:
                    raise ConfigError(
                        f"config.model.positions is 'rotary', and the mixer {name!r} has no "
                        "rotary positions"
                    )
        if self.width % self.num_heads:
            raise ConfigError(
                f"config.model.width ({self.width}) is not a multiple of "
                f"config.model.num_heads ({self.num_heads})"
            )
        multiple = {"sinusoidal": 2, "sinusoidal_concatenated": 4}.get(self.positions, 1)
        if self.width % multiple:
            raise ConfigError(
                f"config.model.width ({self.width}) is not a multiple of {multiple}, which "
                f"config.model.positions={self.positions!r} needs"
            )
        for name in ("scan_layers", "share_layers"):
            if getattr(self, name) and self.num_layers % len(self.pattern):
                raise ConfigError(
                    f"config.model.num_layers ({self.num_layers}) is not a multiple of the length "
                    f"of config.model.pattern ({len(self.pattern)}), which {name} needs"
                )
        if self.share_layers and self.norm == "batchnorm":
            raise ConfigError(
                "config.model.norm is 'batchnorm', whose statistics belong to one layer; it must "
                "be another one with config.model.share_layers"
            )
        if self.share_layers and self.memory_layers:
            raise ConfigError(
                "config.model.memory_layers has layers, whose batch norms belong to one layer; it "
                "must be empty with config.model.share_layers"
            )
        if self.scan_layers and not self._memories_repeat(len(self.pattern)):
            raise ConfigError(
                f"config.model.memory_layers is {self.memory_layers}; scan_layers needs the same "
                "ones in every repetition of config.model.pattern"
            )
        if max(self.memory_layers, default=0) >= self.num_layers:
            raise ConfigError(
                f"config.model.memory_layers is {self.memory_layers}; each must be less than "
                f"config.model.num_layers ({self.num_layers})"
            )

    def _memories_repeat(self, period: int) -> bool:
        """Returns whether a layer has a memory if the layer a period later has one."""
        places = {layer % period for layer in self.memory_layers}
        return len(places) * self.num_layers == len(set(self.memory_layers)) * period

    def _check_mixers(self) -> None:
        if not self.pattern:
            raise ConfigError("config.model.pattern is empty; name a mixer")
        for key, names in (("pattern", self.pattern), ("mixers", self.mixers)):
            for name in names:
                if name not in MIXERS:
                    raise ConfigError(
                        f"config.model.{key} names {name!r}; the mixers are {', '.join(MIXERS)}"
                    )
        for name, options in self.mixers.items():
            follows = MIXERS[name].length_option, None  # None stands for the length of the data
            check_options(name, {k: v for k, v in options.items() if (k, v) != follows})

    def _following(self) -> dict[str, Any]:
        """Returns the values of options that follow from other options, by name."""
        pattern = _layers(self.pattern, self.pattern_fill, self.num_layers)
        mixers = {name: self._options_of(name) for name in dict.fromkeys(pattern)}
        ratio = self.feed_forward_ratio
        if ratio is None:
            ratio = feed_forward_ratio(pattern, self.gated)
        ordered = any(MIXERS[name].needs_no_positions(given) for name, given in mixers.items())
        share = fractions.Fraction(ratio).limit_denominator(1000)  # 8/3, exactly
        prefix = self.num_prefix_tokens
        follows = {
            "pattern": pattern,
            "pattern_fill": "repeat",
            "mixers": mixers,
            "feed_forward_width": math.floor(share * self.width),
            "positions": "none" if ordered else "sinusoidal",
            "max_positions": self.length + prefix if self.length else _MAX_POSITIONS,
            "scan_layers": self.num_layers > len(pattern)
            and self.num_layers % len(pattern) == 0
            and self._memories_repeat(len(pattern)),
        }
        always = ("pattern", "pattern_fill", "mixers")
        return {
            name: value
            for name, value in follows.items()
            if name in always or getattr(self, name) in (None, "auto")
        }

    def _options_of(self, mixer: str) -> dict[str, Any]:
        """Returns the given options of a mixer, with the length option set from the data."""
        options = dict(self.mixers.get(mixer, {}))
        follows = MIXERS[mixer].length_option
        if follows is None or options.get(follows, of_default(mixer, follows)) is not None:
            return options
        options.pop(follows, None)
        if self.length is not None:
            bounds = MIXERS[mixer].limits_length
            options[follows] = self.length + (self.num_prefix_tokens if bounds else 0)
        elif of_default(mixer, follows) is None:
            raise ConfigError(f"config.model.mixers.{mixer}.{follows} is missing")
        return options

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens that the model adds in front of a row."""
        return 0

    @property
    def has_look_ahead(self) -> bool:
        """Whether a mixer of the pattern attends to later tokens."""
        return any(map(self.is_bidirectional, self.pattern))

    def is_bidirectional(self, name: str) -> bool:
        """Returns whether a mixer of the pattern attends to later tokens, by its options."""
        options = self.mixers.get(name, {})
        parts = options.get("branches", {}).values() if name == "parallel" else [options]
        return any(part.get("direction", "causal") != "causal" for part in parts)

    def require_causal(self) -> None:
        """Raises a ConfigError if a mixer attends to the token that the model predicts."""
        for name in self.pattern:
            if self.is_bidirectional(name):
                raise ConfigError(
                    f"config.model.mixers.{name}: direction must be causal, else the model sees "
                    "the token that it predicts"
                )

    def require_positions(self, key: str, length: int) -> None:
        """Raises a ConfigError if `length`, the value of `key`, exceeds the limit of any layer."""
        rows = self.max_positions if self.positions == "learned" else None
        if rows is not None and rows < length:
            raise ConfigError(f"config.model.max_positions ({rows}) is less than {key} ({length})")
        for name in self.pattern:
            bound = longest_input(name, self.mixers.get(name, {}))
            if bound is not None and bound[1] < length:
                raise ConfigError(
                    f"config.model.mixers.{name}.{bound[0]} ({bound[1]}) is less than {key} "
                    f"({length})"
                )


def _layers(pattern: tuple[str, ...], fill: str, num_layers: int) -> tuple[str, ...]:
    """Returns a pattern that fills the layers when it is repeated."""
    if len(pattern) == 1 or fill == "repeat":
        return pattern
    if fill == "last":
        return (pattern + pattern[-1:] * num_layers)[:num_layers]
    ends = [num_layers * (n + 1) // len(pattern) for n in range(len(pattern))]
    counts = [end - start for start, end in itertools.pairwise([0, *ends])]
    return tuple(name for name, count in zip(pattern, counts, strict=True) for _ in range(count))
