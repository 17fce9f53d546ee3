"""Encoder and decoder of equal length, joined position by position (Hadjeres & Crestel 2021).

An anticausal encoder takes a sequence with masked events; a causal decoder predicts the whole
sequence.  There is no cross attention: the encoder output at a position, called memory, joins the
decoder at the same position.  The memory at i depends on the source from i on, and the decoder
output at i on the target before i, so no prediction depends on masked events that are not generated
yet.  Both halves are linear recurrences: the cost of filling a gap is the cost of its events.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from linear_transformer.config import schema
from linear_transformer.config.schema import FRACTION, NOT_NEGATIVE, POSITIVE, Range
from linear_transformer.errors import ConfigError
from linear_transformer.models.model import Model
from linear_transformer.nn.block import Block
from linear_transformer.nn.layers.feed_forward import ACTIVATIONS, FeedForward
from linear_transformer.nn.layers.linear import Embed, Head, Linear, flops_of_weights
from linear_transformer.nn.layers.norms import NORMS, make_norm
from linear_transformer.nn.layers.positions import sinusoidal
from linear_transformer.nn.layers.residuals import RESIDUALS
from linear_transformer.nn.mixers.linear_attention import LinearAttention
from linear_transformer.nn.parameters import embedding, spread, vector
from linear_transformer.nn.stack import REMAT_POLICIES, Stack
from linear_transformer.ops import sequence_parallel
from linear_transformer.ops.feature_maps import FEATURE_MAPS
from linear_transformer.types import Activations, PRNGKey, SegmentIds, Tokens

DecoderState = Any
Events = Int[Array, "B N C"]
Times = Int[Array, "B N"]
EventMask = Bool[Array, "B N"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignedEncoderDecoderConfig:
    """Configuration of `AlignedEncoderDecoder`; see configs/papers/hadjeres2021 for the paper's.

    Attributes:
      vocab_sizes: vocabulary size of each channel; an event is one token per channel.
      width: features D of a token.
      encoder_layers, decoder_layers: number of blocks of each half.
      num_heads: number of heads H; a divisor of the width.
      feed_forward_width: features F of the feed-forward; None is 2 * width.
      token_width, index_width, channel_width, elapsed_width: features of the four parts of an
        embedding: the token, the index of its event, its channel, and the elapsed time in
        hundredths of a second (0 leaves it out).
      feature_map: feature map of queries and keys, a name in `ops.feature_maps.FEATURE_MAPS`.
      residual: residual connection of sub-layers and memory, "gru" or "sum".
      activation: activation of the feed-forward, in `nn.layers.feed_forward.ACTIVATIONS`.
      norm: norm of the sub-layers, a name in `nn.layers.norms.NORMS`.
      dropout: share of the features that are set to 0 in training.
      scan_layers: whether a scan runs the layers of each half, which compiles faster.
      remat: values that the backward pass recomputes: "none", "full", "dots" for all but matmuls.
      dtype: dtype of the activations; parameters are fp32.
    """

    vocab_sizes: tuple[int, ...] = schema.by_data()
    width: int
    encoder_layers: int
    decoder_layers: int
    num_heads: int
    feed_forward_width: int | None = None
    token_width: int = 32
    index_width: int = 128
    channel_width: int = 12
    elapsed_width: int = 128
    feature_map: str = "elu_plus_one"
    residual: str = "gru"
    activation: str = "gelu"
    norm: str = "layernorm"
    dropout: float = 0.0
    scan_layers: bool = False
    remat: str = "none"
    dtype: str = "float32"

    CHOICES: ClassVar[Mapping[str, Any]] = {
        "feature_map": FEATURE_MAPS,
        "residual": RESIDUALS,
        "activation": ACTIVATIONS,
        "norm": NORMS,
        "remat": REMAT_POLICIES,
        "dtype": schema.DTYPES,
    }
    RANGES: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(
            (
                *("vocab_sizes", "width", "encoder_layers", "decoder_layers", "num_heads"),
                *("feed_forward_width", "token_width", "index_width", "channel_width"),
            ),
            POSITIVE,
        ),
        "elapsed_width": NOT_NEGATIVE,
        "dropout": FRACTION,
    }

    def __post_init__(self):
        schema.check(self, "model")
        if self.feed_forward_width is None:
            object.__setattr__(self, "feed_forward_width", 2 * self.width)
        for key in ("index_width", "elapsed_width"):
            if getattr(self, key) % 2:
                raise ConfigError(f"config.model.{key} is {getattr(self, key)}; it must be even")
        if self.width % self.num_heads:
            raise ConfigError(
                f"config.model.width ({self.width}) is not a multiple of "
                f"config.model.num_heads ({self.num_heads})"
            )


class EventEmbedding(nnx.Module):
    """Embedding of token, event index, channel and elapsed time, projected to the model's width.

    Attributes:
      masks: whether each channel has a mask token, and masked events a learned vector as time.
    """

    def __init__(self, config: AlignedEncoderDecoderConfig, *, masks: bool, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        sizes = np.array(c.vocab_sizes) + masks
        self.masks = masks
        self.index_width, self.elapsed_width = c.index_width, c.elapsed_width
        # The tables of the channels are stacked in one table.
        self.first_rows = tuple((np.cumsum(sizes) - sizes).tolist())
        self.mask_tokens = c.vocab_sizes
        init = nnx.initializers.normal(1.0)
        self.tokens = Embed(
            int(sizes.sum()),
            c.token_width,
            embedding_metadata=embedding("vocabulary", "embed"),
            dtype=dtype,
            embedding_init=init,
            rngs=rngs,
        )
        self.channels = Embed(
            len(sizes),
            c.channel_width,
            embedding_metadata=embedding(None, "embed"),
            dtype=dtype,
            embedding_init=init,
            rngs=rngs,
        )
        if masks and c.elapsed_width:
            masked_time = init(rngs.params(), (c.elapsed_width,))
            self.masked_time = nnx.Param(masked_time, **vector(None))
        width = c.token_width + c.index_width + c.channel_width + c.elapsed_width
        self.projection = Linear(width, c.width, axes=(None, "embed"), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens_BT: Tokens,
        channels_T: Int[np.ndarray, " T"],
        index_BT: Int[Array, "B T"],
        elapsed_BT: Int[Array, "B T"],
        masked_BT: Bool[Array, "B T"] | None = None,
    ) -> Activations:
        """Embeds consecutive tokens, given the channel, event index and elapsed time of each."""
        if masked_BT is not None:
            tokens_BT = jnp.where(masked_BT, np.array(self.mask_tokens)[channels_T], tokens_BT)
        token = self.tokens(tokens_BT + np.array(self.first_rows, np.int32)[channels_T])
        channel = self.channels(jnp.broadcast_to(jnp.asarray(channels_T), tokens_BT.shape))
        parts = [token, sinusoidal(index_BT, self.index_width).astype(token.dtype), channel]
        if self.elapsed_width:
            time = sinusoidal(elapsed_BT, self.elapsed_width).astype(token.dtype)
            if masked_BT is not None:
                time = jnp.where(masked_BT[..., None], spread(self.masked_time[...], time), time)
            parts.append(time)
        return self.projection(jnp.concatenate(parts, axis=-1))


class AlignedEncoderDecoder(Model):
    """Model that maps masked events to logits of the value of every channel of every event."""

    def __init__(self, config: AlignedEncoderDecoderConfig, *, rngs: nnx.Rngs):
        c = config
        self.dtype = dtype = jnp.dtype(c.dtype)
        self.num_channels = len(c.vocab_sizes)

        def stack(num_layers: int, direction: str, memory: bool) -> Stack:
            # GRU gates start near the identity; sums need small branches for that.
            output_scale = (2 * num_layers) ** -0.5 if c.residual == "sum" else 1.0
            options = {"output_scale": output_scale, "dtype": dtype}
            hidden = c.feed_forward_width
            assert hidden is not None  # __post_init__ has set it

            def make_block(_: int, rngs: nnx.Rngs) -> Block:
                return Block(
                    LinearAttention(
                        c.width,
                        c.num_heads,
                        feature_map=c.feature_map,
                        direction=direction,
                        rngs=rngs,
                        **options,
                    ),
                    FeedForward(
                        c.width,
                        hidden,
                        gated=False,
                        activation=c.activation,
                        dropout=c.dropout,
                        rngs=rngs,
                        **options,
                    ),
                    width=c.width,
                    norm=c.norm,
                    norm_position="pre",
                    dropout=c.dropout,
                    residual=c.residual,
                    memory=memory,
                    dtype=dtype,
                    rngs=rngs,
                )

            return Stack(
                make_block, num_layers, period=1, scan=c.scan_layers, remat=c.remat, rngs=rngs
            )

        self.source = EventEmbedding(c, masks=True, rngs=rngs)
        self.encoder = stack(c.encoder_layers, "anticausal", memory=False)
        self.encoder_norm = make_norm(c.norm, c.width, dtype, rngs)
        self.target = EventEmbedding(c, masks=False, rngs=rngs)
        start = nnx.initializers.normal(1.0)(rngs.params(), (c.width,))
        self.start = nnx.Param(start, **vector("embed"))
        self.decoder = stack(c.decoder_layers, "causal", memory=True)
        self.decoder_norm = make_norm(c.norm, c.width, dtype, rngs)
        self.heads = nnx.List(
            [Head(c.width, size, dtype=dtype, rngs=rngs) for size in c.vocab_sizes]
        )
        self.dropout = nnx.Dropout(c.dropout)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token in both halves and one head; see `LanguageModel.flops_per_token`."""
        heads = flops_of_weights(self.heads)
        weights = flops_of_weights(self) - heads + heads // self.num_channels
        mixers = (stack.flops_beyond_weights(context) for stack in (self.encoder, self.decoder))
        return weights + sum(mixers)

    def init_state(self, batch_size: int) -> DecoderState:
        """Returns the state of the decoder before its first token."""
        return self.decoder.init_state(batch_size)

    def first_input(self, batch_size: int) -> Float[Array, "B 1 D"]:
        """Returns the learned vector that is the first input of the decoder."""
        start = self.start[...]
        return spread(start, jnp.zeros((batch_size, 1, start.size), self.dtype))

    def embed_source(self, events_BNC: Events, elapsed_BN: Times, masked_BN: EventMask):
        """Embeds the source, (B, N C, D); tokens and times of masked events are hidden."""
        return self._embed(self.source, events_BNC, elapsed_BN, masked_BN)

    def embed_target(self, events_BNC: Events, elapsed_BN: Times):
        """Embeds the target, (B, N C, D), not shifted."""
        return self._embed(self.target, events_BNC, elapsed_BN, None)

    def _embed(self, embedding, events_BNC, elapsed_BN, masked_BN):
        batch, num_events, num_channels = events_BNC.shape

        def flat(x_BN):
            return jnp.repeat(x_BN, num_channels, axis=1)

        places_N = sequence_parallel.places(num_events)
        return embedding(
            events_BNC.reshape(batch, -1),
            np.tile(np.arange(num_channels), num_events),
            jnp.broadcast_to(flat(places_N[None]), (batch, num_events * num_channels)),
            flat(elapsed_BN),
            None if masked_BN is None else flat(masked_BN),
        )

    def encode(
        self,
        source_BTD: Activations,
        dropout_key: PRNGKey | None = None,
        *,
        segment_ids: SegmentIds | None = None,
    ) -> Activations:
        """Encodes an embedded source as memory (B, T, D); position i depends on positions >= i."""
        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        x_BTD = self.dropout(source_BTD, deterministic=keys[0] is None, rngs=keys[0])
        x_BTD, _ = self.encoder(x_BTD, segment_ids=segment_ids, dropout_key=keys[1])
        return self.encoder_norm(x_BTD)

    def decode(
        self,
        inputs_BTD: Activations,
        memory_BTD: Activations,
        state: DecoderState | None = None,
        *,
        dropout_key: PRNGKey | None = None,
    ) -> tuple[Activations, DecoderState | None]:
        """Computes features (B, T, D) for the heads, and the state after the last input.

        Args:
          inputs_BTD: embedded target, shifted by one: position i has token i - 1.
          memory_BTD: output of the encoder at the positions to predict.
          state: state of the decoder before these positions; None for the start of a sequence, and
            then no state is returned.
          dropout_key: key for training; None turns dropout off.
        """
        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        x_BTD = self.dropout(inputs_BTD, deterministic=keys[0] is None, rngs=keys[0])
        x_BTD, state = self.decoder(x_BTD, state, memory_BTD=memory_BTD, dropout_key=keys[1])
        return self.decoder_norm(x_BTD), state

    def logits(self, h_BD: Float[Array, "*rows D"], channel: int) -> Float[Array, "*rows E"]:
        """Returns the logits of one channel in fp32 or wider."""
        return self.heads[channel](h_BD)

    def __call__(
        self,
        events_BNC: Events,
        elapsed_BN: Times,
        masked_BN: EventMask,
        *,
        mask_BN: EventMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> tuple[Float[Array, "B N _"], ...]:
        """Returns logits (B, N, E) of each channel, with the same events as source and target.

        Args:
          events_BNC: true values; the encoder does not see masked events.
          elapsed_BN: time of each event since the first, in hundredths of a second.  The encoder
            gets the times of events that are not masked, which include the length of a gap.
          masked_BN: True if all channels of an event are masked.
          mask_BN: False for padding behind the events, which no other event depends on.
          dropout_key: key for training; None turns dropout off.
        """
        batch, num_events, num_channels = events_BNC.shape
        dropout_key = sequence_parallel.own_key(dropout_key)
        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        segment_ids = None
        if mask_BN is not None:
            segment_ids = jnp.repeat(mask_BN.astype(jnp.int32), num_channels, axis=1)
        source_BTD = self.embed_source(events_BNC, elapsed_BN, masked_BN)
        memory_BTD = self.encode(source_BTD, keys[0], segment_ids=segment_ids)
        target_BTD = self.embed_target(events_BNC, elapsed_BN)
        inputs_BTD = sequence_parallel.delayed(target_BTD, self.first_input(batch))
        h_BTD, _ = self.decode(inputs_BTD, memory_BTD, dropout_key=keys[1])
        h_BNCD = h_BTD.reshape(batch, num_events, num_channels, -1)
        return tuple(self.logits(h_BNCD[:, :, c], c) for c in range(num_channels))
