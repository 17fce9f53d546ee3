"""Positions: what each kind promises."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.layers.positions import PositionEmbedding, rotate, sinusoidal
from tests.ops.contract import relative_rms

B, T, H, K, D = 2, 9, 2, 8, 12
RNG = np.random.default_rng(0)
POSITIONS = np.array([np.r_[:T], np.r_[:4, 100:105]], np.int32)


def table(positions, width):
    """Vaswani et al. 2017, section 3.5: sin and cos of p / 10000^(2i / width)."""
    angles = positions[..., None] / 10_000.0 ** (2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def test_sinusoidal():
    # fp32 angles up to 104 are off by 104 * 2^-24 or so.
    assert relative_rms(sinusoidal(jnp.asarray(POSITIONS), D), table(POSITIONS, D)) < 1e-5


def inner_products(q, k, positions):
    q, k = (np.asarray(rotate(jnp.asarray(x), jnp.asarray(positions))) for x in (q, k))
    return np.einsum("bthk,bshk->bhts", q, k)


def test_rotary_depends_on_differences_only():
    q, k = (RNG.normal(size=(B, T, H, K)).astype(np.float32) for _ in range(2))
    here = inner_products(q, k, POSITIONS)
    assert relative_rms(inner_products(q, k, POSITIONS + 50), here) < 1e-5
    assert relative_rms(inner_products(q, k, 2 * POSITIONS), here) > 0.1
    one = np.tile(q[:, :1], (1, T, 1, 1))  # equal vectors: only the difference is left
    products = inner_products(one, one, POSITIONS[:1].repeat(B, 0))
    for offset in range(-T + 1, T):
        diagonal = np.diagonal(products, offset, axis1=2, axis2=3)
        np.testing.assert_allclose(diagonal, diagonal[..., :1] + 0 * diagonal, atol=2e-5)


def test_rotary_keeps_length_and_leaves_position_0():
    q = RNG.normal(size=(B, T, H, K)).astype(np.float32)
    turned = np.asarray(rotate(jnp.asarray(q), jnp.asarray(POSITIONS)))
    np.testing.assert_allclose(np.sum(turned**2, -1), np.sum(q**2, -1), rtol=1e-5)
    assert np.array_equal(turned[:, 0], q[:, 0])
    assert relative_rms(turned[:, 1:], q[:, 1:]) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "kind", ["none", "rotary", "sinusoidal", "sinusoidal_concatenated", "learned"]
)
def test_embedding(kind, dtype):
    width = PositionEmbedding.token_width(kind, D)
    embedding = PositionEmbedding(kind, width, 128, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(B, T, width)), dtype)
    y = embedding(x, jnp.asarray(POSITIONS))
    assert y.shape == (B, T, D)
    assert y.dtype == x.dtype
    exact = np.asarray(x, np.float64)
    if kind == "sinusoidal":
        exact = exact + table(POSITIONS, D)
    elif kind == "sinusoidal_concatenated":
        assert width == D // 2
        exact = np.concatenate([exact, table(POSITIONS, D // 2)], axis=-1)
    elif kind == "learned":
        exact = exact + np.asarray(embedding.table.embedding[...], np.float64)[POSITIONS]
    assert relative_rms(y, exact) < {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
    assert embedding.capacity == (128 if kind == "learned" else None)
