"""Speech recognizers for CTC: a stack of blocks, or bidirectional LSTMs, over all frames."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.config import schema
from linear_transformer.config.schema import FRACTION, POSITIVE, Range
from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.models.model import Model
from linear_transformer.models.trunk import Trunk
from linear_transformer.nn.layers.bilstm import BiLSTM
from linear_transformer.nn.layers.linear import Head, Linear, flops_of_weights
from linear_transformer.nn.layers.positions import PositionEmbedding
from linear_transformer.types import KeyMask, Logits, PRNGKey

FrameFeatures = Float[Array, "B T I"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(LanguageModelConfig):
    """Options of a language model; `vocab_size` is the number of symbols E, the blank included."""

    tied: bool = False  # frames have no embedding table

    def __post_init__(self):
        super().__post_init__()
        if self.tied:
            raise ConfigError("config.model.tied is True; frames have no embedding to share")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiLSTMConfig:
    """Configuration of the recurrent baseline.

    Attributes:
      vocab_size: number of symbols E, the blank included.
      length: longest row of the data in frames.
      hidden: units of each direction.
      num_layers: number of bidirectional LSTM layers.
      dropout: share of the features that are set to 0 in training.
      dtype: dtype of the activations; parameters are fp32.
    """

    vocab_size: int = schema.by_data()
    length: int | None = schema.by_data(None)
    hidden: int = 320
    num_layers: int = 3
    dropout: float = 0.0
    dtype: str = "float32"

    CHOICES: ClassVar[Mapping[str, Any]] = {"dtype": schema.DTYPES}
    RANGES: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(("vocab_size", "length", "hidden", "num_layers"), POSITIVE),
        "dropout": FRACTION,
    }

    def __post_init__(self):
        schema.check(self, "model")


ENCODERS = {"transformer": TransformerConfig, "bilstm": BiLSTMConfig}


class FrameEncoder(nnx.Module):
    """Linear layer, positions and a stack of blocks, with the interface of `BiLSTM`."""

    def __init__(self, config: TransformerConfig, features: int, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        frame_width = PositionEmbedding.token_width(c.positions, c.width)
        self.embedding = Linear(
            features, frame_width, axes=(None, "embed"), group="embedding", dtype=dtype, rngs=rngs
        )
        self.trunk = Trunk(c, rngs=rngs)

    def flops_per_token(self, context: int) -> int:
        return flops_of_weights(self) + self.trunk.stack.flops_beyond_weights(context)

    def __call__(
        self,
        frames_BTI: FrameFeatures,
        *,
        mask: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "B T D"]:
        return self.trunk(self.embedding(frames_BTI), mask_BT=mask, dropout_key=dropout_key)


class SpeechRecognizer(Model):
    """Model of symbol logits per frame, 0 is the blank (Katharopoulos et al. 2020, section 4.3).

    Args:
      features: number of features I of a frame.
    """

    def __init__(self, config: TransformerConfig | BiLSTMConfig, features: int, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        if isinstance(c, BiLSTMConfig):
            self.encoder = BiLSTM(
                features, c.hidden, c.num_layers, dropout=c.dropout, dtype=dtype, rngs=rngs
            )
            width = 2 * c.hidden
        else:
            self.encoder = FrameEncoder(c, features, rngs=rngs)
            width = c.width
        self.head = Head(width, c.vocab_size, dtype=dtype, rngs=rngs)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one frame; see `LanguageModel.flops_per_token`."""
        return self.encoder.flops_per_token(context) + flops_of_weights(self.head)

    def __call__(
        self,
        frames_BTI: FrameFeatures,
        *,
        mask_BT: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Logits:
        """Returns logits (B, T, E) in fp32.

        Args:
          frames_BTI: one utterance per row, aligned to the left.
          mask_BT: False for padding behind an utterance, which changes no other frame.
          dropout_key: key for training; None turns dropout off.
        """
        return self.head(self.encoder(frames_BTI, mask=mask_BT, dropout_key=dropout_key))
