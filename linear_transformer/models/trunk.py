"""Trunk of a model: all layers between the embedding of a sequence and the head."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.models.language_model import LanguageModelConfig, make_stack
from linear_transformer.nn.layers.norms import apply_norm, make_stream_norm
from linear_transformer.nn.layers.positions import PositionEmbedding
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import Activations, KeyMask, PRNGKey


class Trunk(nnx.Module):
    """Positions, dropout and a stack of blocks with norms, for whole sequences without a state."""

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
        self.stack = make_stack(c, rngs)
        self.final_norm = (
            make_stream_norm(c.norm, c.width, dtype, rngs) if c.norm_position == "pre" else None
        )
        self.dropout = nnx.Dropout(c.dropout)

    def __call__(
        self,
        x_BTM: Float[Array, "B T M"],
        *,
        mask_BT: KeyMask | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Activations:
        """Returns the hidden states of all tokens.

        Args:
          x_BTM: embedded tokens, with the width of `PositionEmbedding.token_width`.
          mask_BT: False for padding behind a sequence, which no other token depends on.
          dropout_key: key for training; None turns dropout off.
        """
        places_T = sequence_parallel.places(x_BTM.shape[1])
        positions_BT = jnp.broadcast_to(places_T, x_BTM.shape[:2])
        x_BTD = self.positions(x_BTM, positions_BT)
        if self.embedding_norm is not None:
            x_BTD = apply_norm(self.embedding_norm, x_BTD, training=dropout_key is not None)
        dropout_key = sequence_parallel.own_key(dropout_key)
        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        x_BTD = self.dropout(x_BTD, deterministic=keys[0] is None, rngs=keys[0])
        x_BTD, _ = self.stack(
            x_BTD,
            segment_ids=None if mask_BT is None else mask_BT.astype(jnp.int32),
            positions=positions_BT,
            dropout_key=keys[1],
        )
        if self.final_norm is None:
            return x_BTD
        return apply_norm(self.final_norm, x_BTD, training=dropout_key is not None)
