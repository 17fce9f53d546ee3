"""State-space models and sLSTM against the equations of their papers, token by token in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixers.registry import MIXERS
from tests.nn.mixer_cases import B, D, H, T
from tests.nn.transcriptions import (
    array,
    assert_equations,
    convolved,
    dense,
    gelu,
    heads,
    layer_norm,
    sigmoid,
    silu,
    softplus,
)


def mamba(mixer, x, history, h):
    """Gu and Dao 2023, algorithm 2 with the discretisation of section 3; Grazzi et al. 2024."""
    inner, n, rank = mixer.value_width, mixer.key_width, mixer.dt_rank
    z = dense(mixer.gate, x)
    u = convolved(mixer, [dense(mixer.value, a) for a in history])
    selected = dense(mixer.selection, u)
    dt = softplus(dense(mixer.dt, selected[:rank]))
    b, c = selected[rank : rank + n], selected[rank + n :]
    h = np.zeros((n, inner)) if h is None else h
    a = np.exp(-dt * np.exp(array(mixer.log_decay)))
    a = 2 * a - 1 if mixer.negative_eigenvalues else a
    h = a * h + np.outer(b, dt * u)
    return dense(mixer.output, (c @ h + array(mixer.skip) * u) * silu(z)), h


def lru(mixer, x, history, h):
    """Orvieto et al. 2023, section 3, with complex B and C."""
    eigenvalues = np.exp(-np.exp(array(mixer.nu)) + 1j * np.exp(array(mixer.theta)))
    real, imaginary = np.split(array(mixer.input.kernel), 2, axis=1)
    h = 0 if h is None else h
    h = eigenvalues * h + np.exp(array(mixer.log_gamma)) * (x @ (real + 1j * imaginary))
    real, imaginary = np.split(array(mixer.read.kernel), 2, axis=0)
    y = (h @ (real + 1j * imaginary)).real + array(mixer.skip) * x
    g = gelu(y)
    return dense(mixer.output, g) * sigmoid(dense(mixer.output_gate, g)), h


def rg_lru(mixer, x, history, h):
    """De et al. 2024, equations 1-4 in the recurrent block of figure 2."""
    taps, bias = array(mixer.local.taps), array(mixer.convolution_bias)
    newest = [dense(mixer.value, a) for a in history[::-1]]
    u = heads(sum(tap * a for tap, a in zip(taps, newest, strict=False)) + bias)
    r, i = (
        sigmoid(np.einsum("hk,hko->ho", u, array(gate.kernel)) + array(gate.bias))
        for gate in (mixer.decay_gate, mixer.input_gate)
    )
    a = sigmoid(array(mixer.decay)) ** (8 * r)
    h = a * (0 if h is None else h) + np.sqrt(1 - a**2) * i * u
    return dense(mixer.output, gelu(dense(mixer.gate, x)) * h.ravel()), h


def slstm(mixer, x, history, s):
    """Beck et al. 2024, equations 8-14, without the stabiliser; s holds c, n and h."""
    u = convolved(mixer, history)
    c, n, h = s or [0, 0, np.zeros((H, D // H))]
    layers = (mixer.value, mixer.input_gate, mixer.forget_gate, mixer.output_gate)
    recurrent = np.split(np.einsum("hk,hkx->hx", h, array(mixer.recurrent.kernel)), 4, axis=1)
    z, i, f, o = (
        heads(dense(layer, a)) + r
        for layer, a, r in zip(layers, (x, u, u, x), recurrent, strict=True)
    )
    c = sigmoid(f) * c + np.exp(i) * np.tanh(z)
    n = sigmoid(f) * n + np.exp(i)
    h = sigmoid(o) * c / n
    return dense(mixer.output, layer_norm(h, mixer.norm).ravel()), [c, n, h]


@pytest.mark.parametrize(
    ("name", "label", "step"),
    [
        ("slstm", "default", slstm),
        ("mamba", "chunks", mamba),
        ("mamba", "negative", mamba),
        ("lru", "chunks", lru),
        ("rg_lru", "chunks", rg_lru),
    ],
)
def test_equations(name, label, step):
    """Packed documents: each starts with an empty state, an empty convolution and no last token."""
    assert_equations(name, label, step)


def test_rg_lru_starts_with_the_published_decays():
    mixer = MIXERS["rg_lru"](64, 2, rngs=nnx.Rngs(0))
    decays = sigmoid(array(mixer.decay)) ** 8
    assert 0.9 < decays.min() < 0.91 and 0.99 < decays.max() < 0.999


@pytest.mark.parametrize("gate", [-200.0, 200.0])
def test_rg_lru_has_gradients_at_the_ends_of_its_gates(gate):
    """Where a_t rounds to 1, and 1 - a_t^2 to 0."""
    mixer = MIXERS["rg_lru"](D, H, rngs=nnx.Rngs(0))
    mixer.decay_gate.bias[...] = jnp.full_like(mixer.decay_gate.bias[...], gate)
    graphdef, parameters = nnx.split(mixer)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, D)), jnp.float32)
    loss = jax.jit(jax.grad(lambda p, x: jnp.sum(nnx.merge(graphdef, p)(x)[0] ** 2), (0, 1)))
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(loss(parameters, x)))
