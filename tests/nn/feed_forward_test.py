"""Feature maps and feed-forwards against NumPy, and what dropout promises."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.layers.feed_forward import ACTIVATIONS, FeedForward
from linear_transformer.ops.feature_maps import FEATURE_MAPS, feature_width, named
from tests.ops.contract import relative_rms

D, F = 6, 10
X = np.random.default_rng(0).normal(size=(3, 5, D)).astype(np.float32) * 2


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dpfp(x, nu=1):
    """Schlag et al. 2021, by indices: r_i r_(i + j), in the order of their released code."""
    r = np.maximum(np.concatenate([x, -x], -1), 0)
    n = r.shape[-1]
    return np.stack(
        [r[..., i] * r[..., (i - j) % n] for j in range(1, nu + 1) for i in range(n)], -1
    )


FUNCTIONS = {
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "elu_plus_one": lambda x: np.where(x > 0, x, np.exp(x) - 1) + 1,
    "relu": lambda x: np.maximum(x, 0),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "identity": lambda x: x,
    "softmax": softmax,
    "signed_softmax": lambda x: softmax(np.concatenate([x, -x], -1)),
    "dpfp": dpfp,
    "exp": np.exp,
    "gelu": tanh_gelu,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


# phi(q)^T phi(k) as a function of s = q^T k / sqrt(K).
KERNELS = {
    "taylor": lambda s: 1 + s + s**2 / 2,
    "quadratic": lambda s: s**2,
}


@pytest.mark.parametrize("name", [name for name in FEATURE_MAPS if name not in KERNELS])
def test_feature_maps(name):
    expected = FUNCTIONS[name](X.astype(np.float64))
    assert relative_rms(FEATURE_MAPS[name](jnp.asarray(X)), expected) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [1, 2, D])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name, width, dtype):
    """Each pair of equal products is one feature; bf16 is as exact as fp32."""
    x = jnp.asarray(X[..., :width].reshape(-1, width), dtype)
    features = np.asarray(FEATURE_MAPS[name](x), np.float64)
    assert features.shape[-1] == feature_width(FEATURE_MAPS[name], width)
    s = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T / width**0.5
    assert relative_rms(features @ features.T, KERNELS[name](s)) < 1e-6


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_dpfp_has_nu_rolled_copies(nu):
    phi = named("dpfp", nu)
    assert phi is named("dpfp", nu)
    assert feature_width(phi, D) == 2 * D * nu
    assert relative_rms(phi(jnp.asarray(X)), dpfp(X.astype(np.float64), nu)) < 1e-6


def test_number_of_features():
    """Half of the 1 + 16 + 16^2 of the paper."""
    assert feature_width(FEATURE_MAPS["taylor"], 16) == 1 + 16 + 16 * 17 // 2
    assert feature_width(None, 16) == 16


@pytest.mark.parametrize("name", ["elu_plus_one", "softmax", "relu", "squared_relu"])
def test_feature_maps_far_from_0(name):
    """Finite values and gradients, and never a negative weight, at any fp32 input."""
    x = jnp.asarray([-1e4, -200.0, -1.0, 0.0, 1.0, 200.0, 1e4])
    y = FEATURE_MAPS[name](x)
    gradient = jax.grad(lambda x: jnp.sum(FEATURE_MAPS[name](x)))(x)
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(gradient))
    assert np.all(y >= 0)


def test_elu_plus_one_is_smooth_around_0():
    gradient = jax.grad(lambda x: jnp.sum(FEATURE_MAPS["elu_plus_one"](x)))
    np.testing.assert_allclose(gradient(jnp.array([-1e-6, 1e-6])), 1, atol=1e-5)


def make(activation="gelu", gated=False, dropout=0.0):
    return FeedForward(
        D,
        F,
        gated=gated,
        activation=activation,
        dropout=dropout,
        output_scale=1.0,
        dtype=jnp.dtype("float32"),
        rngs=nnx.Rngs(0),
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward(activation, gated):
    layer = make(activation, gated)
    up, down = (np.asarray(w.kernel[...], np.float64) for w in (layer.up, layer.down))
    h = FUNCTIONS[activation](X @ up)
    if gated:
        h = h * (X @ np.asarray(layer.gate.kernel[...], np.float64))
    assert relative_rms(layer(jnp.asarray(X)), h @ down) < 1e-5


def test_dropout_expectation():
    """With a linear activation the mean over masks is the output without dropout."""
    layer = make("identity", dropout=0.25)
    x = jnp.asarray(X)
    exact = layer(x)
    assert np.array_equal(layer(x), exact)  # deterministic without a key

    keys = jax.random.split(jax.random.key(0), 4000)
    samples = jax.jit(jax.vmap(functools.partial(layer, x)))(keys)
    spread = np.std(samples, axis=0)
    assert np.all(spread > 0)
    # A standard error of the mean in every one of 90 elements: 5 of them is one in a million each.
    assert np.all(np.abs(np.mean(samples, axis=0) - exact) < 5 * spread / math.sqrt(len(keys)))
    assert not np.array_equal(samples[0], samples[1])
    assert np.array_equal(layer(x, keys[3]), layer(x, keys[3]))
