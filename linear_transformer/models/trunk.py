"""Trunk of a model: all layers between the embedding of a sequence and the head."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.models.model import Model
from linear_transformer.nn.block import Block
from linear_transformer.nn.layers.feed_forward import FeedForward
from linear_transformer.nn.layers.norms import apply_norm, make_stream_norm
from linear_transformer.nn.layers.positions import PositionEmbedding
from linear_transformer.nn.layers.product_key_memory import ProductKeyMemory
from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.mixers.registry import make_mixer
from linear_transformer.nn.stack import Stack
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import Activations, KeyMask, Positions, PRNGKey, SegmentIds


def _make_stack(config: LanguageModelConfig, rngs: nnx.Rngs) -> Stack:
    """Makes the blocks of a model.

    Raises:
      ConfigError: a mixer or a memory does not take its options in the config.
    """
    c = config
    dtype = jnp.dtype(c.dtype)
    # Residual branches start small, so that the stream does not grow with depth (GPT-2).
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
        if layer in c.memory_layers:
            sizes = {"keys": c.memory_keys, "top": c.memory_top, "heads": c.memory_heads}
            try:
                feed_forward = ProductKeyMemory(c.width, **sizes, **given)
            except ValueError as error:
                raise ConfigError(f"config.model.memory_{error}") from error
        elif c.feed_forward_width:
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
        shared=c.share_layers,
        remat=c.remat,
        rngs=rngs,
    )


class Body(Model):
    """Positions, dropout and a stack of blocks with norms; a subclass embeds the input."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        token_width = PositionEmbedding.token_width(c.positions, c.width)
        self.positions = PositionEmbedding(c.positions, token_width, c.max_positions, rngs=rngs)
        self.embedding_norm = (
            None
            if c.embedding_norm == "none"
            else make_stream_norm(c.embedding_norm, c.width, dtype, rngs)
        )
        self.stack = _make_stack(c, rngs)
        self.final_norm = (
            make_stream_norm(c.norm, c.width, dtype, rngs) if c.norm_position == "pre" else None
        )
        self.dropout = nnx.Dropout(c.dropout)

    def hidden(
        self,
        x_BTM: Float[Array, "B T M"],
        layers: MixerState | None,
        *,
        segment_ids: SegmentIds | None,
        positions: Positions,
        dropout_key: PRNGKey | None,
    ) -> tuple[Activations, MixerState | None]:
        """Returns the hidden states of all tokens, and the state of the layers.

        Args:
          x_BTM: embedded tokens, with the width of `PositionEmbedding.token_width`.
          layers: state of the layers before the first token; None for whole sequences.
          segment_ids: packed segments.
          positions: positions of the tokens.
          dropout_key: key for training; None turns dropout off.
        """
        training = dropout_key is not None
        dropout_key = sequence_parallel.own_key(dropout_key)
        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        x_BTD = self.positions(x_BTM, positions)
        if self.embedding_norm is not None:
            x_BTD = apply_norm(self.embedding_norm, x_BTD, training=training)
        x_BTD = self.dropout(x_BTD, deterministic=keys[0] is None, rngs=keys[0])
        x_BTD, layers = self.stack(
            x_BTD, layers, segment_ids=segment_ids, positions=positions, dropout_key=keys[1]
        )
        if self.final_norm is not None:
            x_BTD = apply_norm(self.final_norm, x_BTD, training=training)
        return x_BTD, layers


class Trunk(Body):
    """All layers of a model between embedding and head, for whole sequences without a state."""

    def __call__(
        self,
        x_BTM: Float[Array, "B T M"],
        *,
        mask_BT: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Activations:
        """Returns the hidden states of all tokens; see `Body.hidden`.

        Args:
          x_BTM: embedded tokens.
          mask_BT: False for padding behind a sequence, which no other token depends on.
          dropout_key: key for training; None turns dropout off.
        """
        places_T = sequence_parallel.places(x_BTM.shape[1])
        x_BTD, _ = self.hidden(
            x_BTM,
            None,
            segment_ids=None if mask_BT is None else mask_BT.astype(jnp.int32),
            positions=jnp.broadcast_to(places_T, x_BTM.shape[:2]),
            dropout_key=dropout_key,
        )
        return x_BTD
