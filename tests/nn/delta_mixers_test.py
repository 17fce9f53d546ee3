"""The mixers of the delta rule against the equations of their papers, token by token in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixers.registry import MIXERS
from tests.nn.mixer_cases import D, H
from tests.nn.mixer_programs import PACKED_POSITIONS, SEGMENTS, build
from tests.nn.transcriptions import (
    INPUT,
    TOLERANCE,
    array,
    assert_equations,
    dense,
    heads,
    layer_norm,
    rms,
    sigmoid,
    silu,
    softplus,
    token_by_token,
)
from tests.ops.contract import assert_agree, relative_rms


def unit(x):
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def low_rank(layer, x, activation=lambda x: x):
    return dense(layer.up, activation(dense(layer.down, x)))


def projected(mixer, history):
    """Queries, keys and values of the newest token, after the convolution, by head and step."""
    layers = (mixer.query, mixer.key, mixer.value)
    features = [np.concatenate([dense(layer, a) for layer in layers]) for a in history]
    taps = array(mixer.local.taps)
    mixed = silu(sum(tap * a for tap, a in zip(taps, features[::-1], strict=False)))
    keys = mixer.key_heads * mixer.key_width
    q, k, v = np.split(mixed, [keys, keys + mixer.steps * keys])
    q, k = q.reshape(mixer.key_heads, -1), k.reshape(mixer.key_heads, mixer.steps, -1)
    q, k = (np.repeat(unit(a), H // mixer.key_heads, axis=0) for a in (q, k))
    return q, k, v.reshape(H, mixer.steps, -1)


def normed(mixer, q, s):
    o = np.einsum("hk,hkv->hv", q, s)
    return (rms(o, 1e-5) * array(mixer.norm.scale)).ravel()


def delta_rule(mixer, x, history, s, decay):
    """Normed outputs (H, V) and states after one token's steps; decay is (H, K)."""
    q, k, v = projected(mixer, history)
    beta = (1 + mixer.negative_eigenvalues) * sigmoid(dense(mixer.step, x)).reshape(H, mixer.steps)
    s = np.zeros((H, q.shape[1], v.shape[2])) if s is None else s
    s = decay[..., None] * s
    for n, h in np.ndindex(mixer.steps, H):
        s[h] = s[h] + beta[h, n] * np.outer(k[h, n], v[h, n] - s[h].T @ k[h, n])
    return normed(mixer, q, s), s


def delta_net(mixer, x, history, s):
    """Yang et al. 2024, section 2.2."""
    o, s = delta_rule(mixer, x, history, s, np.ones((H, mixer.key_width)))
    return dense(mixer.output, o), s


def gated_delta_net(mixer, x, history, s):
    """Yang, Kautz and Hatamizadeh 2024, sections 3.1 and 3.4; steps of Siems et al. 2025."""
    dt = softplus(dense(mixer.dt, x) + array(mixer.dt_bias))
    decay = np.exp(-np.exp(array(mixer.log_decay)) * dt)
    o, s = delta_rule(mixer, x, history, s, np.tile(decay[:, None], mixer.key_width))
    return dense(mixer.output, o * silu(dense(mixer.gate, x))), s


def kda_decay(mixer, x):
    dt = heads(low_rank(mixer.dt, x) + array(mixer.dt_bias))
    scale = np.exp(array(mixer.log_decay))
    if mixer.lower_bound is None:
        return np.exp(-scale * softplus(dt))
    return np.exp(mixer.lower_bound * sigmoid(scale * dt))


def kda(mixer, x, history, s):
    """Kimi Team 2025, section 4."""
    o, s = delta_rule(mixer, x, history, s, kda_decay(mixer, x))
    return dense(mixer.output, o * sigmoid(low_rank(mixer.gate, x))), s


def gdn2(mixer, x, history, s):
    """Hatamizadeh, Choi and Kautz 2026, the gated delta rule 2."""
    q, k, v = projected(mixer, history)
    k, v = k[:, 0], v[:, 0]
    erase, write = (heads(sigmoid(dense(gate, x))) for gate in (mixer.erase, mixer.write))
    erase = (1 + mixer.negative_eigenvalues) * erase
    s = np.zeros((H, k.shape[1], v.shape[1])) if s is None else s
    decay = kda_decay(mixer, x)
    for h in range(H):
        transition = np.eye(k.shape[1]) - np.outer(k[h], erase[h] * k[h])
        s[h] = transition @ (decay[h][:, None] * s[h]) + np.outer(k[h], write[h] * v[h])
    o = normed(mixer, q, s) * sigmoid(low_rank(mixer.gate, x))
    return dense(mixer.output, o), s


def rwkv7(mixer, x, history, s, first=None):
    """Peng et al. 2025, section 4.1; `first` is the value of the first layer for an input."""
    before = history[-2] if len(history) > 1 else np.zeros(D)
    names = ("receptance", "decay", "key", "value", "rate", "gate")
    inputs = dict(zip(names, x + (before - x) * array(mixer.shift), strict=True))
    r = heads(dense(mixer.receptance, inputs["receptance"]))
    k = dense(mixer.key, inputs["key"])
    v = dense(mixer.value, inputs["value"])
    if first is not None:
        share = low_rank(mixer.residual, inputs["value"]) + array(mixer.residual_bias)
        v = v + (first(x) - v) * sigmoid(share)
    v = heads(v)
    d = low_rank(mixer.decay, inputs["decay"], np.tanh) + array(mixer.decay_bias)
    w = heads(np.exp(-np.exp(-0.5) * sigmoid(d)))
    a = sigmoid(low_rank(mixer.rate, inputs["rate"]) + array(mixer.rate_bias))
    g = low_rank(mixer.gate, inputs["gate"], sigmoid)
    kappa = unit(heads(k * array(mixer.removal_scale)))
    k = heads(k * (1 + (a - 1) * array(mixer.replacement)))
    a = heads(a)
    s = np.zeros((H, k.shape[1], v.shape[1])) if s is None else s.copy()
    o = np.zeros(v.shape)
    for h in range(H):
        transition = np.diag(w[h]) - np.outer(a[h] * kappa[h], kappa[h])
        s[h] = transition @ s[h] + np.outer(k[h], v[h])
        o[h] = s[h].T @ r[h]
    bonus = np.sum(r * array(mixer.bonus) * k, axis=-1, keepdims=True) * v
    return dense(mixer.output, g * (layer_norm(o, mixer.norm) + bonus).ravel()), s


@pytest.mark.parametrize(
    ("name", "label", "step"),
    [
        ("delta_net", "chunks", delta_net),
        ("delta_net", "recurrent", delta_net),
        ("gated_delta_net", "chunks", gated_delta_net),
        ("gated_delta_net", "one key head", gated_delta_net),
        ("delta_product", "chunks", gated_delta_net),
        ("kda", "chunks", kda),
        ("kda", "bounded", kda),
        ("kda", "one key head", kda),
        ("gdn2", "chunks", gdn2),
        ("rwkv7", "chunks", rwkv7),
    ],
)
def test_equations(name, label, step):
    """Packed documents: each starts with an empty state, an empty convolution and no last token."""
    assert_equations(name, label, step)


def test_values_of_the_first_layer():
    """The residual of RWKV-7 with given values, and without any, in the first layer."""
    mixer, apply = build("rwkv7", "value residual")
    x, segment_ids = jnp.asarray(INPUT), jnp.asarray(SEGMENTS)
    apply_after = jax.jit(lambda v: mixer(x, segment_ids=segment_ids, first_BTI=v)[0])
    expected = token_by_token(mixer, functools.partial(rwkv7, first=lambda x: 3 * x))
    assert_agree({"y": apply_after(3 * INPUT)}, {"y": expected}, TOLERANCE)
    alone, _ = apply(INPUT, None, SEGMENTS, PACKED_POSITIONS)
    first = apply_after(mixer.first_values(x, segment_ids=segment_ids))
    assert_agree({"y": first}, {"y": alone}, TOLERANCE)
    assert relative_rms(first, expected) > 1e-2


def test_rwkv7_starts_as_released():
    """RWKV_Tmix_x070 of layer 6 of 12, with width C and head width N, by its formulas."""
    C, N, depth = 96, 16, 0.5
    mixer = MIXERS["rwkv7"](C, C // N, depth=depth, value_residual=True, rngs=nnx.Rngs(0))
    n = np.arange(C)
    linear = n / (C - 1) - 0.5
    zigzag = (n % N - (N - 1) / 2) / ((N - 1) / 2)
    zigzag = zigzag * np.abs(zigzag)
    powers = np.array([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])[:, None]
    expected = {
        "shift": 1 - (n / C) ** (powers * (1 - depth)),
        "decay_bias": -6 + 6 * (n / (C - 1)) ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag,
        "rate_bias": -0.19 + 0.3 * zigzag + 0.4 * linear,
        "residual_bias": 0.73 - 0.4 * linear,
        "removal_scale": 0.71 - 0.1 * linear,
        "replacement": np.full(C, 1.02),
        "bonus": np.full((C // N, N), -0.04),
    }
    assert_agree({name: array(getattr(mixer, name)) for name in expected}, expected, 1e-6)
    assert not np.any(array(mixer.output.kernel))
    for name, bound in (("receptance", 0.5), ("key", 0.05), ("value", 0.5)):
        largest = np.abs(array(getattr(mixer, name).kernel)).max() * C**0.5
        assert 0.99 * bound < largest <= bound * (1 + 1e-6)
    for name, rank in (("decay", 32), ("rate", 32), ("gate", 64), ("residual", 32)):
        layer = getattr(mixer, name)
        assert not np.any(array(layer.down.kernel))
        rows = array(layer.up.kernel)
        np.testing.assert_allclose(rows @ rows.T, 0.01 * np.eye(rank), atol=1e-6)
