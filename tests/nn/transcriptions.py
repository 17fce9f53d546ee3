"""Parts of the transcriptions of papers: layers in NumPy float64, and a loop over packed tokens."""

import numpy as np

from tests.nn.mixer_cases import B, D, H, T
from tests.nn.mixer_programs import PACKED_POSITIONS, SEGMENTS, build, compiled
from tests.ops.contract import assert_agree

INPUT = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)

# fp32 rounding over projections, convolutions, norms and sums of 20 terms.
TOLERANCE = 5e-6


def array(parameter):
    return np.asarray(parameter[...], np.float64)


def dense(layer, x):
    y = x @ array(layer.kernel)
    return y if layer.bias is None else y + array(layer.bias)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softplus(x):
    return np.logaddexp(0, x)


def rms(x, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)


def layer_norm(x, norm):
    x = x - x.mean(-1, keepdims=True)
    return rms(x, norm.epsilon) * array(norm.scale) + array(norm.bias)


def heads(x):
    return x.reshape(*x.shape[:-1], H, -1)


def turned(x, positions):
    """Rotary positions as complex numbers: pair i is multiplied by exp(1j * m * theta_i)."""
    half = x.shape[-1] // 2
    theta = 10_000.0 ** (-2 * np.arange(half) / x.shape[-1])
    z = x[..., :half] + 1j * x[..., half:]
    z = z * np.exp(1j * positions[:, :, None, None] * theta)
    return np.concatenate([z.real, z.imag], axis=-1)


def convolved(mixer, history):
    """silu(sum_i w_i x_{t-i} + bias) of the tokens of a segment so far, the last one the newest."""
    taps = array(mixer.local.taps)
    y = sum(tap * x for tap, x in zip(taps, history[::-1], strict=False))
    return silu(y + array(mixer.convolution_bias))


def token_by_token(mixer, step):
    """Outputs of `step(mixer, x, history, state)` for the tokens of each document.

    A document starts with an empty state, an empty convolution and no last token; the history ends
    with x, the newest token.
    """
    expected = np.zeros((B, T, D))
    for b in range(B):
        for i in range(T):
            if i == 0 or SEGMENTS[b, i] != SEGMENTS[b, i - 1]:
                history, s = [], None
            history.append(INPUT[b, i].astype(np.float64))
            expected[b, i], s = step(mixer, history[-1], history, s)
    return expected


def assert_equations(name, label, step):
    mixer, _ = build(name, label)
    y, _ = compiled(name, label)(INPUT, None, SEGMENTS, PACKED_POSITIONS)
    assert_agree({"y": y}, {"y": token_by_token(mixer, step)}, TOLERANCE)
