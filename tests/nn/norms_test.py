"""Norms: the formulas in NumPy float64, and rows without a norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.layers.norms import NORMS, make_norm
from tests.ops.contract import relative_rms

D = 12
X = np.random.default_rng(0).normal(size=(3, 5, D)) * np.geomspace(1e-3, 1e3, 5)[:, None]


def oracle(name, x, gain):
    if name == "layernorm":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * gain
    if name == "rmsnorm":
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * gain
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    epsilon = {"simplermsnorm": 1e-8, "scalenorm": 1e-6}[name]
    return x / (length / np.sqrt(D) + epsilon) * gain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NORMS)
def test_formula(name, dtype):
    norm = make_norm(name, D, jnp.dtype(dtype), nnx.Rngs(0))
    gain = 1.0
    if name == "simplermsnorm":
        assert not jax.tree.leaves(nnx.state(norm))
    else:
        shape = () if name == "scalenorm" else (D,)
        gain = np.random.default_rng(1).uniform(0.5, 2, size=shape)
        norm.scale[...] = jnp.asarray(gain, jnp.float32)
    x = jnp.asarray(X, dtype)
    y = norm(x)
    assert y.dtype == dtype
    expected = oracle(name, np.asarray(x, np.float64), gain)
    for row in range(X.shape[1]):  # of very different scales
        error = relative_rms(y[:, row], expected[:, row])
        assert error < {"float32": 2e-6, "bfloat16": 4e-3}[dtype]


@pytest.mark.parametrize("name", ["simplermsnorm", "scalenorm"])
def test_row_of_zeros(name):
    """0, with a finite gradient: attention by ReLU scores makes such rows."""
    norm = make_norm(name, D, jnp.dtype("float32"), nnx.Rngs(0))
    x = jnp.zeros((2, D)).at[1].set(1.0)
    y, gradient = jax.value_and_grad(lambda x: jnp.sum(norm(x) * jnp.arange(D)))(x)
    assert np.all(np.isfinite(gradient))
    assert np.isfinite(y)
    assert np.array_equal(norm(x)[0], np.zeros(D))


def test_unknown_name():
    with pytest.raises(
        ValueError, match=r"norm is 'batchnorm'; choose one of layernorm.*scalenorm"
    ):
        make_norm("batchnorm", D, jnp.dtype("float32"), nnx.Rngs(0))
