"""Recognizers of speech that see all frames at once: a stack of blocks, or LSTMs, then CTC."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModelConfig, make_stack
from linear_transformer.nn.bilstm import BiLSTM
from linear_transformer.nn.linear import Linear
from linear_transformer.nn.norms import make_norm
from linear_transformer.nn.positions import PositionEmbedding
from linear_transformer.types import KeyMask, Logits, PRNGKey

FrameFeatures = Float[Array, "B T I"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(LanguageModelConfig):
    """A language model's choices; `vocab_size` is the number of symbols E, the blank included."""

    tied: bool = False  # frames have no rows of an embedding

    def __post_init__(self):
        super().__post_init__()
        if self.tied:
            raise ConfigError("config.model.tied is True; frames have no embedding to share")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiLSTMConfig:
    """The recurrent baseline.

    Attributes:
      vocab_size: number of symbols E, the blank included.
      hidden: units of each direction.
    """

    vocab_size: int
    hidden: int = 320
    num_layers: int = 3
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        for key in ("vocab_size", "hidden", "num_layers"):
            if getattr(self, key) < 1:
                raise ConfigError(
                    f"config.model.{key} is {getattr(self, key)}; it must be positive"
                )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"config.model.dropout is {self.dropout}; it must be in [0, 1)")
        if self.dtype not in ("float32", "bfloat16", "float64"):
            raise ConfigError(
                f"config.model.dtype is {self.dtype!r}; choose one of float32, bfloat16, float64"
            )


class FrameEncoder(nnx.Module):
    """A linear layer, positions, and a stack of blocks; called like a `BiLSTM`."""

    def __init__(self, config: TransformerConfig, features: int, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        frame_width = PositionEmbedding.token_width(c.positions, c.width)
        self.embedding = Linear(features, frame_width, dtype=dtype, rngs=rngs)
        self.positions = PositionEmbedding(c.positions, frame_width, c.max_positions, rngs=rngs)
        self.embedding_norm = (
            None
            if c.embedding_norm == "none"
            else make_norm(c.embedding_norm, c.width, dtype, rngs)
        )
        self.stack = make_stack(c, rngs)
        self.final_norm = (
            make_norm(c.norm, c.width, dtype, rngs) if c.norm_position == "pre" else None
        )
        self.dropout = nnx.Dropout(c.dropout)

    def __call__(
        self,
        frames_BTI: FrameFeatures,
        *,
        mask: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "B T D"]:
        positions_BT = jnp.broadcast_to(jnp.arange(frames_BTI.shape[1]), frames_BTI.shape[:2])
        x_BTD = self.positions(self.embedding(frames_BTI), positions_BT)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        x_BTD = self.dropout(x_BTD, deterministic=keys[0] is None, rngs=keys[0])
        x_BTD, _ = self.stack(
            x_BTD,
            segment_ids=None if mask is None else mask.astype(jnp.int32),
            positions=positions_BT,
            dropout_key=keys[1],
        )
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD)


class SpeechRecognizer(nnx.Module):
    """Logits of the symbols in every frame, 0 the blank (Katharopoulos et al. 2020, section 4.3).

    Args:
      features: numbers I that a frame has.
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
        self.head = Linear(width, c.vocab_size, dtype=dtype, rngs=rngs)

    @property
    def num_parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(nnx.state(self, nnx.Param)))

    def __call__(
        self,
        frames_BTI: FrameFeatures,
        *,
        mask_BT: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Logits:
        """Logits (B, T, E) in fp32.

        Args:
          frames_BTI: one utterance a row, from the left.
          mask_BT: False for the padding behind an utterance, which changes no other frame.
        """
        logits_BTE = self.head(self.encoder(frames_BTI, mask=mask_BT, dropout_key=dropout_key))
        return logits_BTE.astype(jnp.promote_types(logits_BTE.dtype, jnp.float32))
