"""A language model of any layer pattern."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.errors import ConfigError
from linear_transformer.nn.block import Block
from linear_transformer.nn.feed_forward import ACTIVATIONS, FeedForward
from linear_transformer.nn.linear import Linear, flops_of_weights
from linear_transformer.nn.logical_axes import named
from linear_transformer.nn.mixers import (
    MIXERS,
    check_options,
    longest_input,
    make_mixer,
    mixer_options,
)
from linear_transformer.nn.norms import STREAM_NORMS, apply_norm, make_stream_norm
from linear_transformer.nn.positions import POSITIONS, PositionEmbedding
from linear_transformer.nn.residuals import RESIDUALS
from linear_transformer.nn.stack import REMAT_POLICIES, Stack
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import Logits, Positions, PRNGKey, SegmentIds, Tokens

ModelState = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """The choices that make a paper's model.

    Attributes:
      pattern: mixer names, repeated over the layers: ("linear",), ("linear", "softmax"), ...
      mixers: options of each mixer by name, passed to its constructor.
      feed_forward_width: F; by convention 4 D, or 8/3 D when gated; 0 for none.
      residual: how sub-layers join the stream, a name in `nn.residuals.RESIDUALS`.
      positions: one of `nn.positions.POSITIONS`.
      max_positions: rows of a learned table.
      norm_position: "pre" (with a final norm) or "post".
      norm: of the sub-layers, a name in `nn.norms.STREAM_NORMS`.
      embedding_norm: norm of the embeddings, a name in `nn.norms.STREAM_NORMS`, or "none".
      tied: the output layer is the transposed embedding.
      num_outputs: numbers that the untied output layer gives for each token, for a loss of its own;
        0 for the logits of the vocabulary.
      scan_layers, remat: see `nn.stack.Stack`.
      dtype: type of the activations; parameters are fp32.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    feed_forward_width: int
    pattern: tuple[str, ...] = ("linear",)
    mixers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    gated: bool = False
    activation: str = "gelu"
    positions: str = "sinusoidal"
    max_positions: int = 1024
    norm: str = "layernorm"
    norm_position: str = "pre"
    embedding_norm: str = "none"
    residual: str = "sum"
    dropout: float = 0.0
    tied: bool = True
    num_outputs: int = 0
    scan_layers: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        choices = {
            "activation": ACTIVATIONS,
            "positions": POSITIONS,
            "norm": STREAM_NORMS,
            "norm_position": ("pre", "post"),
            "embedding_norm": ("none", *STREAM_NORMS),
            "residual": RESIDUALS,
            "remat": REMAT_POLICIES,
            "dtype": ("float32", "bfloat16", "float64"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(
                    f"config.model.{key} is {getattr(self, key)!r}; "
                    f"choose one of {', '.join(allowed)}"
                )
        sizes = ("vocab_size", "width", "num_layers", "num_heads")
        for key in (*sizes, "max_positions"):
            if getattr(self, key) < 1:
                raise ConfigError(
                    f"config.model.{key} is {getattr(self, key)}; it must be positive"
                )
        if self.feed_forward_width < 0:
            raise ConfigError(
                f"config.model.feed_forward_width is {self.feed_forward_width}; 0 is none"
            )
        if self.num_outputs and (self.num_outputs < 0 or self.tied):
            raise ConfigError(
                f"config.model.num_outputs is {self.num_outputs}; it must be 0, or positive with "
                "config.model.tied=False"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"config.model.dropout is {self.dropout}; it must be in [0, 1)")
        if not self.pattern:
            raise ConfigError("config.model.pattern is empty; name a mixer")
        for name in self.pattern:
            if name not in MIXERS:
                raise ConfigError(
                    f"config.model.pattern names {name!r}; the mixers are {', '.join(MIXERS)}"
                )
        for name, options in self.mixers.items():
            if name not in MIXERS:
                raise ConfigError(
                    f"config.model.mixers names {name!r}; the mixers are {', '.join(MIXERS)}"
                )
            try:
                check_options(name, options)
            except ValueError as error:
                raise ConfigError(f"config.model.mixers.{error}") from error
        if self.positions == "rotary":
            for name in self.pattern:
                if "rotary" not in mixer_options(name):
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
        if self.positions == "learned" and self.max_positions < length:
            raise ConfigError(
                f"config.model.max_positions ({self.max_positions}) is less than {key} ({length})"
            )
        for name in self.pattern:
            bound = longest_input(name, self.mixers.get(name, {}))
            if bound is not None and bound[1] < length:
                raise ConfigError(
                    f"config.model.mixers.{name}.{bound[0]} ({bound[1]}) is less than {key} "
                    f"({length})"
                )


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
        scan=c.scan_layers,
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
                c.width, c.num_outputs or c.vocab_size, use_bias=False, dtype=dtype, rngs=rngs
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
