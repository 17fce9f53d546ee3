"""The relative deviation of gradients: against NumPy, and the command."""

import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.reports import gradient_variance
from linear_transformer.reports.gradient_variance import Moments
from tests.training import runs


def test_moments():
    rng = np.random.default_rng(0)
    gradients = {"a": rng.normal(size=(50, 3, 2)), "b": 2 + rng.normal(size=(50, 4))}
    gradients["b"][:, 0] = 0  # an entry without any gradient is left out
    moments = Moments.zeros({n: jnp.zeros(g.shape[1:]) for n, g in gradients.items()})
    for t in range(50):
        moments = moments.add({n: jnp.asarray(g[t], jnp.float32) for n, g in gradients.items()})
    norm, entries = moments.relative_deviations()
    flat = np.concatenate([g.reshape(50, -1) for g in gradients.values()], axis=1)
    norms = np.linalg.norm(flat, axis=1)
    assert norm == pytest.approx(norms.std() / norms.mean(), rel=1e-4)
    size = np.abs(np.delete(flat, 6, axis=1))
    assert entries == pytest.approx(np.mean(size.std(0) / size.mean(0)), rel=1e-4)


def test_measure(text):
    config = runs.make_config(text, model__norm="batchnorm")
    norm, linear = (
        gradient_variance.measure(config, name, steps=4, warmup=2) for name in ("norm", "linear")
    )
    assert all(0 < value < 2 for value in norm)
    assert linear != norm


@pytest.mark.slow
def test_measured_again_it_is_the_same(text):
    config = runs.make_config(text, model__norm="batchnorm")
    first, second = (gradient_variance.measure(config, "norm", steps=4, warmup=2) for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_command(text):
    config = runs.make_config(text)
    arguments = [a for a in runs.arguments(config, "") if a.startswith("--config.")]
    module = ["-m", "linear_transformer.analysis.gradient_variance", "--steps=4", "--warmup=1"]
    result = runs.execute([*module, *arguments])
    assert result.returncode == 0, result.stderr
    assert "NormAttention: norm 0." in result.stdout
