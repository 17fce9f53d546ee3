"""Linear, softmax and forgetting attention against their papers, in NumPy float64.

The transcriptions use the module's own weights, and go through a sequence one query at a time.
"""

import numpy as np
import pytest

from tests.nn.mixer_cases import B, D, H, T
from tests.nn.mixer_programs import build, compiled, inputs, runs
from tests.nn.transcriptions import dense, heads, turned
from tests.ops.contract import assert_agree


def linear_oracle(mixer, x, segment_ids, positions):
    """Katharopoulos et al. 2020, equations 7 and 10-12, and RoFormer's equation 19."""
    q, k, v = (heads(dense(layer, x)) for layer in (mixer.query, mixer.key, mixer.value))
    q, k = (np.where(a > 0, a + 1, np.exp(a)) for a in (q, k))
    rotated = [turned(a, positions) if mixer.rotary else a for a in (q, k)]
    o = np.zeros(v.shape)
    for b, h in np.ndindex(B, H):
        for i in range(T):
            if i == 0 or segment_ids[b, i] != segment_ids[b, i - 1]:
                s = np.zeros((k.shape[-1], v.shape[-1]))
                z = np.zeros(k.shape[-1])
            s = s + np.outer(rotated[1][b, i, h], v[b, i, h])
            z = z + k[b, i, h]
            o[b, i, h] = s.T @ rotated[0][b, i, h] / (z @ q[b, i, h])
    return dense(mixer.output, o.reshape(B, T, D))


def softmax_oracle(mixer, x, segment_ids, positions):
    """Vaswani et al. 2017, equation 1, one query at a time; Lin et al. 2025, section 3, for fox."""
    q, k, v = (dense(layer, x) for layer in (mixer.query, mixer.key, mixer.value))
    q, k, v = (a.reshape(B, T, -1, mixer.key_width) for a in (q, k, v))
    if mixer.query_norm is not None:
        q, k = (
            a / np.sqrt(np.mean(a**2, axis=-1, keepdims=True) + 1e-6) * norm.scale[...]
            for a, norm in ((q, mixer.query_norm), (k, mixer.key_norm))
        )
    count = q.shape[2]
    k, v = (np.repeat(a, count // a.shape[2], axis=2) for a in (k, v))
    if mixer.rotary:
        q, k = turned(q, positions), turned(k, positions)
    gates = dense(mixer.forget, x) if hasattr(mixer, "forget") else np.full((B, T, count), np.inf)
    o, run = np.zeros(v.shape), runs(segment_ids)
    for b, i, h in np.ndindex(B, T, count):
        first = 0 if mixer.window is None else max(0, i + 1 - mixer.window)
        seen = [j for j in range(first, i + 1) if run[b, j] == run[b, i]]
        decay = [np.prod(1 / (1 + np.exp(-gates[b, j + 1 : i + 1, h]))) for j in seen]
        weights = decay * np.exp(k[b, seen, h] @ q[b, i, h] / np.sqrt(q.shape[-1]))
        o[b, i, h] = weights @ v[b, seen, h] / weights.sum()
    o = o.reshape(B, T, -1)
    if mixer.gate is not None:
        o = o / (1 + np.exp(-dense(mixer.gate, x)))
    return dense(mixer.output, o)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "label", "oracle"),
    [
        ("linear", "chunks", linear_oracle),
        ("linear", "rotary", linear_oracle),
        ("linear", "recurrent", linear_oracle),
        ("softmax", "cache", softmax_oracle),
        ("softmax", "rotary", softmax_oracle),
        ("softmax", "window rotary", softmax_oracle),
        ("softmax", "grouped", softmax_oracle),
        ("softmax", "qk norm", softmax_oracle),
        ("softmax", "output gate", softmax_oracle),
        ("softmax", "wide heads", softmax_oracle),
        ("fox", "cache", softmax_oracle),
        ("fox", "window", softmax_oracle),
        ("fox", "all", softmax_oracle),
    ],
)
def test_equations(name, label, oracle, packed):
    """fp32 rounding over projections, 20 terms and a division: a few 1e-7, so 3e-6 is ample."""
    mixer, _ = build(name, label)
    x, segment_ids, positions = inputs(packed)
    y, _ = compiled(name, label)(x, None, segment_ids, positions)
    expected = oracle(mixer, x.astype(np.float64), segment_ids, positions)
    assert_agree({"y": y}, {"y": expected}, 3e-6)
