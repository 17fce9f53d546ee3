"""Classifier of pairs of sequences, encoded independently: the document retrieval of LRA."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from linear_transformer.models.classifier import ClassifierConfig, Encoder
from linear_transformer.models.model import Model
from linear_transformer.nn.layers.linear import Head, Linear
from linear_transformer.types import PRNGKey


class Matcher(Model):
    """Two towers with shared weights, a hidden layer on [a, b, a * b, a - b], and logits.

    The features follow the paper of Long Range Arena (Tay et al. 2021, arXiv:2011.04006, section
    2.2.3); the released code of the paper has [a, b] only.
    """

    def __init__(self, config: ClassifierConfig, *, rngs: nnx.Rngs):
        c = config
        dtype = jnp.dtype(c.dtype)
        self.encoder = Encoder(c, rngs=rngs)
        self.hidden = Linear(
            4 * c.width, c.width, axes=("embed", "feed_forward"), dtype=dtype, rngs=rngs
        )
        self.head = Head(c.width, c.num_classes, dtype=dtype, rngs=rngs)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token of each sequence; see `Classifier.flops_per_token`."""
        return 2 * self.encoder.flops_per_token(context)

    def __call__(
        self,
        tokens_B2T: Int[Array, "B 2 T"],
        *,
        mask_B2T: Bool[Array, "B 2 T"] | None = None,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "B E"]:
        """Returns logits (B, E) in fp32; the arguments are as for `Encoder`, for two sequences."""
        batch, _, time = tokens_B2T.shape
        x_ID = self.encoder(
            tokens_B2T.reshape(2 * batch, time),
            mask_BT=None if mask_B2T is None else mask_B2T.reshape(2 * batch, time),
            dropout_key=dropout_key,
        )
        a_BD, b_BD = jnp.moveaxis(x_ID.reshape(batch, 2, -1), 1, 0)
        features = jnp.concatenate([a_BD, b_BD, a_BD * b_BD, a_BD - b_BD], axis=-1)
        return self.head(jax.nn.relu(self.hidden(features)))
