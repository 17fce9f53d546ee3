"""Classifier of sequences with any layer pattern."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from linear_transformer.config import schema
from linear_transformer.config.schema import Range
from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.models.model import Model
from linear_transformer.models.trunk import Trunk
from linear_transformer.nn.layers.linear import Embed, Head, Linear, flops_of_weights
from linear_transformer.nn.layers.positions import PositionEmbedding
from linear_transformer.nn.parameters import embedding, spread, vector
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import PRNGKey, Tokens

POOLINGS = ("mean", "last", "cls")
INPUTS = ("tokens", "pixels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig(LanguageModelConfig):
    """Configuration of `Classifier`: the options of a language model, and options of the output.

    Attributes:
      num_classes: number of classes E.
      pooling: input of the head: the "mean" of all tokens, the "last" token, or "cls", a learned
        token in front of the row, which needs a mixer that attends to later tokens; "auto" is "cls"
        with such a mixer, and else "mean".
      input: "tokens" are embedded by a table (as in Long Range Arena); "pixels" are numbers that a
        linear layer embeds (as in S4 and its successors, with results that are not comparable).
    """

    num_classes: int = schema.by_data()
    pooling: str = "mean"
    input: str = "tokens"

    CHOICES: ClassVar[Mapping[str, Any]] = {
        **LanguageModelConfig.CHOICES,
        "pooling": ("auto", *POOLINGS),
        "input": INPUTS,
    }
    RANGES: ClassVar[Mapping[str, Range]] = {
        **LanguageModelConfig.RANGES,
        "num_classes": Range(least=2),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.pooling == "auto":
            object.__setattr__(self, "pooling", "cls" if self.has_look_ahead else "mean")
        if self.pooling == "cls" and not self.has_look_ahead:
            raise ConfigError(
                "config.model.pooling is 'cls', a first token, and no mixer looks ahead; set "
                f"config.model.mixers.{self.pattern[0]}.direction=bidirectional"
            )

    @property
    def num_prefix_tokens(self) -> int:
        return 1  # for the token of "cls"


class Encoder(nnx.Module):
    """Encoder of a sequence as one vector: embedding, positions, a stack of blocks, pooling."""

    def __init__(self, config: ClassifierConfig, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        token_width = PositionEmbedding.token_width(c.positions, c.width)
        self.pooling = c.pooling
        self.highest = c.vocab_size - 1
        self.input = c.input
        self.embedding = (
            Embed(
                c.vocab_size,
                token_width,
                dtype=dtype,
                embedding_init=nnx.initializers.normal(1.0),
                embedding_metadata=embedding("vocabulary", "embed"),
                rngs=rngs,
            )
            if c.input == "tokens"
            else Linear(
                1, token_width, axes=(None, "embed"), group="embedding", dtype=dtype, rngs=rngs
            )
        )
        self.cls = (
            nnx.Param(
                jax.random.normal(rngs.params(), (token_width,), jnp.float32), **vector("embed")
            )
            if c.pooling == "cls"
            else None
        )
        self.trunk = Trunk(c, rngs=rngs)

    def __call__(
        self,
        tokens_BT: Tokens,
        *,
        mask_BT: Bool[Array, "B T"] | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "B D"]:
        """Returns the pooled hidden state (B, D) of each sequence.

        Args:
          tokens_BT: one sequence per row, aligned to the left.
          mask_BT: False for padding behind a sequence, which the result does not depend on.
          dropout_key: key for training; None turns dropout off.
        """
        x_BTD = self._embed(tokens_BT)
        if self.cls is not None:
            cls_BxD = spread(self.cls[...], x_BTD[:, :1])
            x_BTD = _put_in_front(cls_BxD, x_BTD)
            if mask_BT is not None:
                mask_BT = _put_in_front(jnp.ones((len(mask_BT), 1), bool), mask_BT)
        x_BTD = self.trunk(x_BTD, mask_BT=mask_BT, dropout_key=dropout_key)
        return self._pool(x_BTD, mask_BT)

    def flops_per_token(self, context: int) -> int:
        return flops_of_weights(self) + self.trunk.stack.flops_beyond_weights(context)

    def _embed(self, tokens_BT: Tokens) -> Float[Array, "B T M"]:
        if self.input == "tokens":
            return self.embedding(tokens_BT)
        # Maps 0 ... highest value to -2 ... 2: about zero mean and unit variance.
        return self.embedding(4 / self.highest * tokens_BT[..., None].astype(jnp.float32) - 2)

    def _pool(
        self, x_BTD: Float[Array, "B T D"], mask_BT: Bool[Array, "B T"] | None
    ) -> Float[Array, "B D"]:
        if self.pooling == "cls":
            return sequence_parallel.of_last(x_BTD[:, 0], reverse=True)
        if mask_BT is None:
            if self.pooling == "last":
                return sequence_parallel.of_last(x_BTD[:, -1])
            return sequence_parallel.total(jnp.mean(x_BTD, axis=1)) / sequence_parallel.shards()
        lengths_B = sequence_parallel.total(jnp.sum(mask_BT, axis=1))
        if self.pooling == "last":
            last_B = jnp.maximum(lengths_B - 1, 0)
            return _at(x_BTD, last_B)
        total_BD = jnp.sum(jnp.where(mask_BT[..., None], x_BTD, 0), axis=1)
        total_BD = sequence_parallel.total(total_BD)
        return total_BD / jnp.maximum(lengths_B, 1)[:, None].astype(x_BTD.dtype)


def _put_in_front(first_Bx: Array, x_BT: Array) -> Array:
    """Adds a first token; a row over several shards drops its last token, which is padding."""
    if sequence_parallel.shards() == 1:
        return jnp.concatenate([first_Bx, x_BT], axis=1)
    return sequence_parallel.delayed(x_BT, first_Bx)


def _at(x_BTD: Float[Array, "B T D"], place_B: Int[Array, " B"]) -> Float[Array, "B D"]:
    """Returns the token at index `place_B` of the whole row."""
    time = x_BTD.shape[1]
    place_B = place_B - sequence_parallel.offset(time)
    here_B = (place_B >= 0) & (place_B < time)
    place_B = jnp.clip(place_B, 0, time - 1)
    x_BD = jnp.take_along_axis(x_BTD, place_B[:, None, None], axis=1)[:, 0]
    return sequence_parallel.total(jnp.where(here_B[:, None], x_BD, 0))


class Classifier(Model):
    """Encoder with a linear layer to the logits of the classes."""

    def __init__(self, config: ClassifierConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        dtype = jnp.dtype(config.dtype)
        self.head = Head(config.width, config.num_classes, dtype=dtype, rngs=rngs)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token without the head, which runs once per row; see `LanguageModel`."""
        return self.encoder.flops_per_token(context)

    def __call__(
        self,
        tokens_BT: Tokens,
        *,
        mask_BT: Bool[Array, "B T"] | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "B E"]:
        """Returns logits (B, E) in fp32; the arguments are the same as for `Encoder`."""
        return self.head(self.encoder(tokens_BT, mask_BT=mask_BT, dropout_key=dropout_key))
