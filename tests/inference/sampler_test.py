"""Sampling: which tokens may come out, and how often."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.errors import ConfigError
from linear_transformer.inference.generation import Sampler

N = 20_000
LOGITS = np.array([0.5, 2.0, -1.0, 1.5, 0.0, -3.0, 1.0], np.float32)


def distribution(sampler, logits):
    """The definition, in NumPy: temperature, then the k best, then the nucleus."""
    p = np.exp(logits.astype(np.float64) / sampler.temperature)
    order = np.argsort(-p)
    if sampler.top_k:
        p[order[sampler.top_k :]] = 0
    p /= p.sum()
    if sampler.top_p < 1:
        size = int(np.searchsorted(np.cumsum(p[order]), sampler.top_p)) + 1
        p[order[size:]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, 7),
        ({"temperature": 0.5}, 7),
        ({"temperature": 2.0}, 7),
        ({"top_k": 1}, 1),
        ({"top_k": 3}, 3),
        ({"top_k": 100}, 7),
        ({"top_p": 1e-6}, 1),
        ({"top_p": 0.7}, 3),
        ({"top_p": 0.99}, 6),
        ({"top_k": 3, "top_p": 0.7}, 2),
        ({"temperature": 3.0, "top_p": 0.7}, 4),
    ],
)
def test_distribution(options, allowed):
    sampler = Sampler(**options)
    p = distribution(sampler, LOGITS)
    assert np.count_nonzero(p) == allowed
    rows = jnp.tile(jnp.asarray(LOGITS), (N, 1))
    tokens = jax.jit(sampler)(rows, jax.random.key(0))
    assert tokens.dtype == jnp.int32
    frequency = np.bincount(tokens, minlength=len(p)) / N
    assert np.all(frequency[p == 0] == 0)
    # 5 standard deviations of a binomial: the key is fixed, so no run differs from another.
    assert np.all(np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / N))


def test_greedy_is_argmax_whatever_the_key():
    logits = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    for seed in (0, 1):
        tokens = Sampler(temperature=0.0)(jnp.asarray(logits), jax.random.key(seed))
        assert np.array_equal(tokens, logits.argmax(-1))


def test_rows_are_drawn_apart():
    """Equal rows of a batch do not get equal tokens, and other keys give other tokens."""
    rows = jnp.zeros((64, 50))
    first, second = (Sampler()(rows, jax.random.key(seed)) for seed in (0, 1))
    assert len(set(np.asarray(first).tolist())) > math.sqrt(64)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"temperature": -0.1}, "--temperature=-0.1"),
        ({"top_k": -1}, "--top_k=-1"),
        ({"top_p": 0.0}, "--top_p=0.0"),
        ({"top_p": 1.1}, "--top_p=1.1"),
    ],
)
def test_mistakes_name_the_flag(options, flag):
    with pytest.raises(ConfigError, match=flag):
        Sampler(**options)
