"""Loss of classification: cross entropy and accuracy."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linear_transformer.tasks.language_modelling import negative_log_likelihood
from linear_transformer.types import Metrics


def classification_loss(
    logits_BE: Float[Array, "B E"],
    labels_B: Int[Array, " B"],
    weights_B: Float[Array, " B"] | None = None,
) -> Metrics:
    """Returns {"loss": nats, "accuracy": right answers}, each as a sum and a count.

    Args:
      weights_B: 0 for rows that fill up a batch; None is 1 for all rows.
    """
    if weights_B is None:
        weights_B = jnp.ones(labels_B.shape, logits_BE.dtype)
    count = weights_B.sum()
    nll_B = negative_log_likelihood(logits_BE[:, None], labels_B[:, None])[:, 0]
    right_B = jnp.argmax(logits_BE, axis=-1) == labels_B
    return {
        "loss": (jnp.sum(nll_B * weights_B), count),
        "accuracy": (jnp.sum(right_B * weights_B), count),
    }
