"""The discretised mixture of logistics: a distribution, with a sampler that draws from it."""

import jax
import jax.numpy as jnp
import numpy as np

from linear_transformer.ops import logistic_mixture

COMPONENTS = 3


def parameters(rows=4, spread=1.0):
    rng = np.random.default_rng(0)
    logits, means = rng.normal(size=(2, rows, COMPONENTS))
    log_scales = rng.normal(-2.0, 1.0, (rows, COMPONENTS))
    return np.concatenate([logits, 0.5 * means, spread * log_scales], -1).astype(np.float32)


def log_probabilities(parameters):
    """(rows, 256)."""
    pixels = jnp.broadcast_to(jnp.arange(256), (len(parameters), 256))
    repeated = jnp.broadcast_to(parameters[:, None], (*pixels.shape, parameters.shape[-1]))
    nll = logistic_mixture.negative_log_likelihood(repeated, pixels)
    return -np.asarray(nll, np.float64)


def test_probabilities_sum_to_one():
    total = np.exp(log_probabilities(parameters())).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=2e-5)


def test_equals_differences_of_the_distribution_function():
    """In fp64 and with NumPy, where no component is far from the pixel."""
    values = parameters().astype(np.float64)
    logits, means, log_scales = np.split(values, 3, axis=-1)
    edges = (np.arange(257) - 0.5) * 2 / 255 - 1
    edges[0], edges[-1] = -np.inf, np.inf
    z = (edges[:, None, None] - means) / np.exp(log_scales)
    cdf = 1 / (1 + np.exp(-z))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.sum(weights * np.diff(cdf, axis=0), axis=-1).T
    np.testing.assert_allclose(
        np.exp(log_probabilities(parameters())), expected, rtol=1e-3, atol=1e-6
    )


def test_far_tails_have_finite_gradients():
    """At the narrowest scale, a pixel that is as far away as can be."""
    tail = jnp.array([0.0, -1.0, -50.0])
    for pixel in (0, 128, 255):
        value, gradient = jax.value_and_grad(
            lambda p, x=pixel: logistic_mixture.negative_log_likelihood(p, jnp.array(x))
        )(tail)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_samples_have_the_distribution():
    """Each frequency of 200,000 draws within 5 standard errors."""
    draws = 200_000
    values = parameters(rows=1)
    pixels = jax.jit(logistic_mixture.sample)(
        jnp.broadcast_to(values, (draws, values.shape[-1])), jax.random.key(0)
    )
    frequencies = np.bincount(np.asarray(pixels), minlength=256) / draws
    expected = np.exp(log_probabilities(values))[0]
    error = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(frequencies - expected) <= 5 * error + 1 / draws)
