"""Language model with any layer pattern."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.models.trunk import Body
from linear_transformer.nn.layers.linear import Embed, Head, Linear, flops_of_weights
from linear_transformer.nn.layers.positions import PositionEmbedding
from linear_transformer.nn.logical_axes import named
from linear_transformer.nn.parameters import embedding
from linear_transformer.ops import sequence_parallel
from linear_transformer.types import Positions, PRNGKey, SegmentIds, Tokens

ModelState = Any


class LanguageModel(Body):
    """Language model: embedding, positions, a stack of blocks, and logits of the next token."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        token_width = PositionEmbedding.token_width(c.positions, c.width)
        table_width = c.embedding_width or token_width
        self.embedding = Embed(
            c.vocab_size,
            table_width,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(table_width**-0.5),
            embedding_metadata=embedding("vocabulary", "embed"),
            rngs=rngs,
        )
        tied = c.tied and token_width == c.width
        linear = functools.partial(Linear, dtype=dtype, rngs=rngs)
        factorised = c.embedding_width is not None
        self.from_table = (
            linear(table_width, token_width, axes=(None, "embed")) if factorised else None
        )
        self.to_table = (
            linear(c.width, table_width, axes=("embed", None)) if factorised and tied else None
        )
        super().__init__(c, rngs=rngs)
        self.head = (
            None
            if tied
            else Head(
                c.width, c.num_outputs or c.vocab_size, use_bias=False, dtype=dtype, rngs=rngs
            )
        )

    @property
    def capacity(self) -> int | None:
        """Most tokens that state and positions can process; None is no limit."""
        limits = [block.mixer.capacity for block in self.stack.blocks]
        limits.append(self.positions.capacity)
        return min((limit for limit in limits if limit is not None), default=None)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token in the forward pass, without lookups, norms and activations.

        A multiply-add counts as two; `context` is the length of the sequence in tokens.
        """
        tied = self.flops_of_logits if self.head is None else 0
        return flops_of_weights(self) + tied + self.stack.flops_beyond_weights(context)

    @property
    def flops_of_logits(self) -> int:
        """Part of `flops_per_token` for the logits."""
        return (
            2 * self.embedding.embedding.size if self.head is None else flops_of_weights(self.head)
        )

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
        places: Int[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B _ E"], ModelState | None]:
        """Returns logits (B, T, E) in fp32, and the state after the last token.

        Without `positions`, tokens are counted on from the state (from 0 without a state).  With
        `places`, indices of tokens in each row, the logits are those of these tokens, (B, N, E).
        """
        if positions is None:
            time = tokens_BT.shape[1]
            start = sequence_parallel.offset(time) if state is None else state["position"][:, None]
            positions = jnp.broadcast_to(start + jnp.arange(time), tokens_BT.shape)
        # Embeddings have unit norm, which tied logits need; the stream needs unit variance.
        x_BTD = self.embedding(tokens_BT) * self.embedding.features**0.5
        if self.from_table is not None:
            x_BTD = self.from_table(x_BTD)
        x_BTD, layers = self.hidden(
            named(x_BTD, "rows", "time", None),
            None if state is None else state["layers"],
            segment_ids=segment_ids,
            positions=positions,
            dropout_key=dropout_key,
        )
        if places is not None:
            x_BTD = jnp.take_along_axis(x_BTD, places[..., None], axis=1)
        if self.to_table is not None:
            x_BTD = self.to_table(x_BTD)
        if self.head is None:
            rows = x_BTD.reshape(-1, x_BTD.shape[-1])
            logits = self.embedding.attend(rows).reshape(*x_BTD.shape[:2], -1)
        else:
            logits = self.head(x_BTD)
        logits = named(logits, "rows", "time", "vocabulary")
        logits_BTE = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if state is None:
            return logits_BTE, None
        return logits_BTE, {"position": positions[:, -1] + 1, "layers": layers}
