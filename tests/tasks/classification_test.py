"""The loss of a classifier against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.tasks.classification import classification_loss


@pytest.mark.parametrize("weighted", [False, True])
def test_loss(weighted):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(6, 4))
    labels = rng.integers(4, size=6)
    weights = np.array([1, 1, 1, 1, 0, 0.0]) if weighted else np.ones(6)
    metrics = classification_loss(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(labels),
        jnp.asarray(weights, jnp.float32) if weighted else None,
    )
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert float(metrics["loss"][0]) == pytest.approx(
        -(np.log(p[np.arange(6), labels]) * weights).sum(), rel=1e-5
    )
    assert float(metrics["accuracy"][0]) == ((p.argmax(-1) == labels) * weights).sum()
    assert {float(count) for _, count in metrics.values()} == {weights.sum()}
