"""Autoencoder of sequences: one vector encodes a sequence, and a decoder predicts all tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.models.classifier import ClassifierConfig, Encoder
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.models.model import Model
from linear_transformer.nn.layers.linear import Head, Linear, flops_of_weights
from linear_transformer.nn.layers.norms import apply_norm, make_stream_norm
from linear_transformer.nn.layers.positions import PositionEmbedding
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import KeyMask, Logits, PRNGKey, Tokens


class Compressor(Model):
    """Encoder pooled at its last token, and a decoder with this vector and a position as input.

    The decoder follows MAD's compression task (Poli et al. 2024, arXiv:2403.17844): sinusoidal
    positions are added to the vector; two dense layers of the model's width follow, with a norm
    before and a GELU after each, and at last a norm and a linear layer to the logits.
    """

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        self.encoder = Encoder(
            ClassifierConfig(**vars(c), num_classes=c.vocab_size, pooling="last"), rngs=rngs
        )
        self.positions = PositionEmbedding("sinusoidal", c.width, c.max_positions, rngs=rngs)
        self.norms = nnx.List([make_stream_norm(c.norm, c.width, dtype, rngs) for _ in range(3)])
        axes = ("embed", "feed_forward")
        self.hidden = nnx.List(
            [Linear(c.width, c.width, axes=axes, dtype=dtype, rngs=rngs) for _ in range(2)]
        )
        self.head = Head(c.width, c.vocab_size, dtype=dtype, rngs=rngs)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token; see `LanguageModel.flops_per_token`."""
        decoder = sum(map(flops_of_weights, (*self.hidden, self.head)))
        return self.encoder.flops_per_token(context) + decoder

    def __call__(
        self,
        tokens_BT: Tokens,
        *,
        mask_BT: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> tuple[Logits, None]:
        """Returns logits (B, T, E) of the input tokens in fp32, and None as state.

        The arguments are the same as for `Encoder`.
        """
        training = dropout_key is not None
        vector_BD = self.encoder(tokens_BT, mask_BT=mask_BT, dropout_key=dropout_key)
        x_BTD = jnp.broadcast_to(vector_BD[:, None], (*tokens_BT.shape, vector_BD.shape[-1]))
        places_T = sequence_parallel.places(tokens_BT.shape[1])
        x_BTD = self.positions(x_BTD, jnp.broadcast_to(places_T, tokens_BT.shape))
        for norm, layer in zip(self.norms, self.hidden, strict=False):
            x_BTD = jax.nn.gelu(layer(apply_norm(norm, x_BTD, training=training)))
        return self.head(apply_norm(self.norms[-1], x_BTD, training=training)), None
