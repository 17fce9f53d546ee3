"""A language model of any layer pattern."""

import dataclasses
import fractions
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.config import schema
from linear_transformer.config.schema import FRACTION, NOT_NEGATIVE, POSITIVE, Range
from linear_transformer.errors import ConfigError
from linear_transformer.nn.block import Block
from linear_transformer.nn.layers.feed_forward import ACTIVATIONS, FeedForward
from linear_transformer.nn.layers.linear import Linear, flops_of_weights
from linear_transformer.nn.layers.norms import STREAM_NORMS, apply_norm, make_stream_norm
from linear_transformer.nn.layers.positions import POSITIONS, PositionEmbedding
from linear_transformer.nn.layers.residuals import RESIDUALS
from linear_transformer.nn.logical_axes import named
from linear_transformer.nn.mixers.registry import (
    MIXERS,
    check_options,
    feed_forward_ratio,
    longest_input,
    make_mixer,
    of_default,
)
from linear_transformer.nn.parameters import embedding
from linear_transformer.nn.stack import REMAT_POLICIES, Stack
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import Logits, Positions, PRNGKey, SegmentIds, Tokens

ModelState = Any
_MAX_POSITIONS = 1024  # where the length of the data is not known


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """The choices that make a paper's model.

    What is None or "auto" follows from the rest, and has its value in the made config.

    Attributes:
      vocab_size: tokens E of the vocabulary.
      length: longest row of the data, tokens; None where it is not known.
      width: features D of a token.
      num_layers: blocks of a mixer and a feed-forward.
      num_heads: heads H; a divisor of the width.
      pattern: mixer names, such as ("linear",) or ("linear", "softmax").
      pattern_fill: how the pattern fills the layers: "repeat" takes it again and again, "stretch"
        gives each name an equal run of layers, "last" fills up with its last name.
      mixers: options of each mixer by name, passed to its constructor; what sets the length of an
        input follows the data if it is None.
      feed_forward_width: features F of the feed-forward, 0 for none; None is feed_forward_ratio
        widths.
      feed_forward_ratio: feed-forward width over the model's; None is 4, or 8/3 when gated, or what
        the mixers need (0 for units that gate themselves).
      gated: whether the feed-forward has a gate.
      activation: of the feed-forward, a name in `nn.layers.feed_forward.ACTIVATIONS`.
      positions: one of `nn.layers.positions.POSITIONS`; "auto" is "none" where a mixer knows the
        order of the tokens, and else "sinusoidal".
      max_positions: rows of a learned table; None is the longest row of the data.
      norm: of the sub-layers, a name in `nn.layers.norms.STREAM_NORMS`.
      norm_position: "pre" (with a final norm) or "post".
      embedding_norm: norm of the embeddings, a name in `nn.layers.norms.STREAM_NORMS`, or "none".
      residual: how sub-layers join the stream, a name in `nn.layers.residuals.RESIDUALS`.
      dropout: share of the features that is set to 0 in training.
      tied: the output layer is the transposed embedding.
      num_outputs: numbers that the untied output layer gives for each token, for a loss of its own;
        0 for the logits of the vocabulary.
      scan_layers: one compiled body for all repetitions of the pattern, which compiles faster; None
        is True where there are several.
      remat: what the backward pass computes again: "none", "full", or "dots" for all but matmuls.
      dtype: type of the activations; parameters are fp32.
    """

    vocab_size: int = schema.by_data()
    length: int | None = schema.by_data(None)
    width: int
    num_layers: int
    num_heads: int
    pattern: tuple[str, ...] = ("linear",)
    pattern_fill: str = "repeat"
    mixers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    feed_forward_width: int | None = None
    feed_forward_ratio: float | None = None
    gated: bool = False
    activation: str = "gelu"
    positions: str = "auto"
    max_positions: int | None = None
    norm: str = "layernorm"
    norm_position: str = "pre"
    embedding_norm: str = "none"
    residual: str = "sum"
    dropout: float = 0.0
    tied: bool = True
    num_outputs: int = 0
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
        "num_layers": Range(least=1, most=100_000),
        **dict.fromkeys(("feed_forward_width", "feed_forward_ratio", "num_outputs"), NOT_NEGATIVE),
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
        if self.scan_layers and self.num_layers % len(self.pattern):
            raise ConfigError(
                f"config.model.num_layers ({self.num_layers}) is not a multiple of the length of "
                f"config.model.pattern ({len(self.pattern)}), which scan_layers needs"
            )

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
            follows = MIXERS[name].length_option, None  # the data, and so it may be None
            check_options(name, {k: v for k, v in options.items() if (k, v) != follows})

    def _following(self) -> dict[str, Any]:
        """The values that follow from others, by name."""
        pattern = _layers(self.pattern, self.pattern_fill, self.num_layers)
        mixers = {name: self._options_of(name) for name in dict.fromkeys(pattern)}
        ratio = self.feed_forward_ratio
        if ratio is None:
            ratio = feed_forward_ratio(pattern, self.gated)
        ordered = any(MIXERS[name].needs_no_positions(given) for name, given in mixers.items())
        share = fractions.Fraction(ratio).limit_denominator(1000)  # 8/3, exactly
        follows = {
            "pattern": pattern,
            "pattern_fill": "repeat",
            "mixers": mixers,
            "feed_forward_width": math.floor(share * self.width),
            "positions": "none" if ordered else "sinusoidal",
            "max_positions": self.length + self._in_front if self.length else _MAX_POSITIONS,
            "scan_layers": self.num_layers > len(pattern) and self.num_layers % len(pattern) == 0,
        }
        always = ("pattern", "pattern_fill", "mixers")
        return {
            name: value
            for name, value in follows.items()
            if name in always or getattr(self, name) in (None, "auto")
        }

    def _options_of(self, mixer: str) -> dict[str, Any]:
        """The options of a mixer that are given; those that follow the data have their value."""
        options = dict(self.mixers.get(mixer, {}))
        follows = MIXERS[mixer].length_option
        if follows is None or options.get(follows, of_default(mixer, follows)) is not None:
            return options
        options.pop(follows, None)
        if self.length is not None:
            bounds = MIXERS[mixer].limits_length
            options[follows] = self.length + (self._in_front if bounds else 0)
        elif of_default(mixer, follows) is None:
            raise ConfigError(f"config.model.mixers.{mixer}.{follows} is missing")
        return options

    @property
    def _in_front(self) -> int:
        """Tokens that the model puts in front of a row."""
        return 0

    def looks_ahead(self, name: str) -> bool:
        """Whether this mixer of the pattern sees later tokens, by its options."""
        options = self.mixers.get(name, {})
        parts = options.get("branches", {}).values() if name == "parallel" else [options]
        return any(part.get("direction", "causal") != "causal" for part in parts)

    def require_causal(self) -> None:
        """Raises a ConfigError where a mixer sees the token that a causal model predicts."""
        for name in self.pattern:
            if self.looks_ahead(name):
                raise ConfigError(
                    f"config.model.mixers.{name}: direction must be causal, else the model sees "
                    "the token that it predicts"
                )

    def require_positions(self, key: str, length: int) -> None:
        """Raises a ConfigError where `key`, a length of the data, is beyond what a part can see."""
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
    """The pattern as one that is repeated over the layers."""
    if len(pattern) == 1 or fill == "repeat":
        return pattern
    if fill == "last":
        return (pattern + pattern[-1:] * num_layers)[:num_layers]
    ends = [num_layers * (n + 1) // len(pattern) for n in range(len(pattern))]
    counts = [end - start for start, end in itertools.pairwise([0, *ends])]
    return tuple(name for name, count in zip(pattern, counts, strict=True) for _ in range(count))


def make_stack(config: LanguageModelConfig, rngs: nnx.Rngs) -> Stack:
    """The blocks of a model.

    Raises:
      ConfigError: a mixer does not take the options that the config gives it.
    """
    c = config
    dtype = jnp.dtype(c.dtype)
    # Residual branches start small, so that depth does not grow the stream (GPT-2).
    output_scale = (2 * c.num_layers) ** -0.5 if c.norm_position == "pre" else 1.0

    def make_block(layer: int, rngs: nnx.Rngs) -> Block:
        name = c.pattern[layer % len(c.pattern)]
        options = dict(c.mixers.get(name, {}))
        if c.positions == "rotary":
            options["rotary"] = True
        given = {"output_scale": output_scale, "dtype": dtype, "rngs": rngs}
        try:
            depth = layer / c.num_layers
            mixer = make_mixer(name, c.width, c.num_heads, depth=depth, **given, **options)
        except ValueError as error:
            raise ConfigError(f"config.model.mixers.{name}: {error}") from error
        feed_forward = None
        if c.feed_forward_width:
            feed_forward = FeedForward(
                c.width,
                c.feed_forward_width,
                gated=c.gated,
                activation=c.activation,
                dropout=c.dropout,
                output_scale=output_scale,
                dtype=dtype,
                rngs=rngs,
            )
        return Block(
            mixer,
            feed_forward,
            width=c.width,
            norm=c.norm,
            norm_position=c.norm_position,
            residual=c.residual,
            dropout=c.dropout,
            dtype=dtype,
            rngs=rngs,
        )

    return Stack(
        make_block,
        c.num_layers,
        period=len(c.pattern),
        scan=bool(c.scan_layers),
        remat=c.remat,
        rngs=rngs,
    )


class LanguageModel(nnx.Module):
    """Embedding, positions, a stack of blocks, and logits of the next token."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        token_width = PositionEmbedding.token_width(c.positions, c.width)
        self.embedding = nnx.Embed(
            c.vocab_size,
            token_width,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(token_width**-0.5),
            embedding_metadata=embedding("vocabulary", "embed"),
            rngs=rngs,
        )
        self.positions = PositionEmbedding(c.positions, token_width, c.max_positions, rngs=rngs)
        self.embedding_norm = (
            None
            if c.embedding_norm == "none"
            else make_stream_norm(c.embedding_norm, c.width, dtype, rngs)
        )
        self.stack = make_stack(c, rngs)
        self.final_norm = (
            make_stream_norm(c.norm, c.width, dtype, rngs) if c.norm_position == "pre" else None
        )
        self.head = (
            None
            if c.tied and token_width == c.width
            else Linear(
                c.width,
                c.num_outputs or c.vocab_size,
                axes=("embed", "vocabulary"),
                group="head",
                use_bias=False,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.dropout = nnx.Dropout(c.dropout)

    @property
    def capacity(self) -> int | None:
        """Tokens that state and positions can follow; None is any number."""
        limits = [block.mixer.capacity for block in self.stack.blocks]
        limits.append(self.positions.capacity)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def num_parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(nnx.state(self, nnx.Param)))

    def flops_per_token(self, context: int) -> int:
        """Forward pass, multiply-adds counted as two; lookups, norms and activations left out."""
        tied = 2 * self.embedding.embedding.size if self.head is None else 0
        return flops_of_weights(self) + tied + self.stack.flops_of_mixers(context)

    def init_state(self, batch_size: int) -> ModelState:
        return {
            "position": jnp.zeros((batch_size,), jnp.int32),
            "layers": self.stack.init_state(batch_size),
        }

    def __call__(
        self,
        tokens_BT: Tokens,
        state: ModelState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        positions: Positions | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> tuple[Logits, ModelState | None]:
        """Logits (B, T, E) in fp32 and the state after the last token.

        Without `positions`, tokens are numbered on from the state (from 0 without a state).
        """
        if positions is None:
            time = tokens_BT.shape[1]
            start = sequence_parallel.offset(time) if state is None else state["position"][:, None]
            positions = jnp.broadcast_to(start + jnp.arange(time), tokens_BT.shape)
        dropout_key = sequence_parallel.own_key(dropout_key)
        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        # Tied rows have unit norm as logits need; the stream wants unit variance.
        x_BTD = self.embedding(tokens_BT) * self.embedding.features**0.5
        x_BTD = self.positions(named(x_BTD, "rows", "time", None), positions)
        if self.embedding_norm is not None:
            x_BTD = apply_norm(self.embedding_norm, x_BTD, training=dropout_key is not None)
        x_BTD = self.dropout(x_BTD, deterministic=keys[0] is None, rngs=keys[0])
        x_BTD, layers = self.stack(
            x_BTD,
            None if state is None else state["layers"],
            segment_ids=segment_ids,
            positions=positions,
            dropout_key=keys[1],
        )
        if self.final_norm is not None:
            x_BTD = apply_norm(self.final_norm, x_BTD, training=dropout_key is not None)
        if self.head is None:
            rows = x_BTD.reshape(-1, x_BTD.shape[-1])
            logits = self.embedding.attend(rows).reshape(*tokens_BT.shape, -1)
        else:
            logits = self.head(x_BTD)
        logits = named(logits, "rows", "time", "vocabulary")
        logits_BTE = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if state is None:
            return logits_BTE, None
        return logits_BTE, {"position": positions[:, -1] + 1, "layers": layers}
