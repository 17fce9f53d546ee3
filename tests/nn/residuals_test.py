"""The GRU gate against its equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linear_transformer.nn.layers.residuals import GRUResidual, SumResidual
from tests.ops.contract import relative_rms


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_gru_residual():
    width = 8
    gate = GRUResidual(width, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    x, y = np.random.default_rng(1).normal(size=(2, 3, 5, width)).astype(np.float32)
    w_r, w_z, w_h = np.split(np.asarray(gate.from_output.kernel[...], np.float64), 3, axis=1)
    u_r, u_z = np.split(np.asarray(gate.from_stream.kernel[...], np.float64), 2, axis=1)
    u_h = np.asarray(gate.from_reset.kernel[...], np.float64)
    r = sigmoid(y @ w_r + x @ u_r)
    z = sigmoid(y @ w_z + x @ u_z - np.asarray(gate.bias[...]))
    h = np.tanh(y @ w_h + (r * x) @ u_h)
    assert relative_rms(gate(jnp.asarray(x), jnp.asarray(y)), (1 - z) * x + z * h) < 1e-6


def test_sum_residual():
    x, y = jax.random.normal(jax.random.key(1), (2, 3, 5, 4))
    residual = SumResidual(4, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    assert np.array_equal(residual(x, y), x + y)
    assert not jax.tree.leaves(nnx.state(residual))
