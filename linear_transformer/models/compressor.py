"""An autoencoder of sequences: one vector for a sequence, and all of its tokens from the vector."""

import jax
import jax.numpy as jnp
from flax import nnx

from linear_transformer.models.classifier import ClassifierConfig, Encoder
from linear_transformer.models.language_model import LanguageModelConfig
from linear_transformer.nn.layers.linear import Linear, flops_of_weights
from linear_transformer.nn.layers.norms import apply_norm, make_stream_norm
from linear_transformer.nn.layers.positions import PositionEmbedding
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import KeyMask, Logits, PRNGKey, Tokens


class Compressor(nnx.Module):
    """An encoder read at its last token, and a decoder that sees that vector and a position.

    The decoder is that of MAD's compression task (Poli et al. 2024, arXiv:2403.17844): sinusoidal
    positions are added to the vector, then two layers as wide as the model with a norm before and a
    GELU after each, and a norm and a linear layer to the logits.
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
        self.head = Linear(
            c.width,
            c.vocab_size,
            axes=("embed", "vocabulary"),
            group="head",
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def num_parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(nnx.state(self, nnx.Param)))

    def flops_per_token(self, context: int) -> int:
        """As of `LanguageModel`."""
        decoder = sum(map(flops_of_weights, (*self.hidden, self.head)))
        return self.encoder.flops_per_token(context) + decoder

    def __call__(
        self,
        tokens_BT: Tokens,
        *,
        mask_BT: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> tuple[Logits, None]:
        """Logits (B, T, E) in fp32 of the tokens themselves, and no state.

        The arguments are those of `Encoder`.
        """
        training = dropout_key is not None
        vector_BD = self.encoder(tokens_BT, mask_BT=mask_BT, dropout_key=dropout_key)
        x_BTD = jnp.broadcast_to(vector_BD[:, None], (*tokens_BT.shape, vector_BD.shape[-1]))
        places_T = sequence_parallel.places(tokens_BT.shape[1])
        x_BTD = self.positions(x_BTD, jnp.broadcast_to(places_T, tokens_BT.shape))
        for norm, layer in zip(self.norms, self.hidden, strict=False):
            x_BTD = jax.nn.gelu(layer(apply_norm(norm, x_BTD, training=training)))
        logits_BTE = self.head(apply_norm(self.norms[-1], x_BTD, training=training))
        return logits_BTE.astype(jnp.promote_types(logits_BTE.dtype, jnp.float32)), None
