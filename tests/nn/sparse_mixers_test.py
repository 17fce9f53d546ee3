"""Sparse, landmark and synthetic softmax attention: whole layers against the papers' equations.

Transcribed in NumPy float64 from the module's own weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixers.adaptive_span import AdaptiveSpan
from linear_transformer.nn.mixers.bigbird import BigBird
from linear_transformer.nn.mixers.longformer import Longformer
from linear_transformer.nn.mixers.nystromformer import Nystromformer
from linear_transformer.nn.mixers.sinkhorn import SinkhornAttention
from linear_transformer.nn.mixers.softmax_attention import SoftmaxAttention
from linear_transformer.nn.mixers.sparse_transformer import SparseTransformer
from linear_transformer.nn.mixers.synthesizer import Synthesizer
from linear_transformer.nn.mixers.transformer_xl import TransformerXL
from tests.nn.baselines_test import (
    SEGMENTS,
    TOLERANCE,
    B,
    D,
    H,
    T,
    build,
    call,
    dense,
    inputs,
    merge,
    split,
    visible,
    weights_of,
)
from tests.ops.contract import relative_rms

K = D // H
PLACES = np.arange(T)
DISTANCES = PLACES[:, None] - PLACES
BOTH = {"direction": "bidirectional"}


def softmax(scores, seen):
    """Rows in which nothing is seen are 0."""
    p = np.where(seen, np.exp(scores - np.max(scores, -1, keepdims=True)), 0)
    total = p.sum(-1, keepdims=True)
    return p / np.where(total > 0, total, 1)


def projected(mixer, layers=None):
    layers = layers or (mixer.query, mixer.key, mixer.value)
    return [split(dense(layer, inputs().astype(np.float64))) for layer in layers]


def attention(q, k, v, seen, bias=0.0):
    return softmax((q @ k.swapaxes(2, 3) + bias) / np.sqrt(K), seen) @ v


def assert_is(mixer, o, segments, rows=None):
    expected = dense(mixer.output, merge(o))
    y = np.asarray(call(mixer, inputs(), segments))
    rows = np.ones((B, T), bool) if rows is None else rows
    assert relative_rms(y[rows], expected[rows]) < TOLERANCE


packings = pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one", "packed"])


@packings
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("pattern", ["strided", "fixed"])
def test_sparse_transformer(pattern, direction, segments):
    """Child et al. 2019, section 4.2: a set of tokens for each half of the heads."""
    mixer = build(SparseTransformer, pattern=pattern, block_size=4, summary=1, direction=direction)
    if pattern == "strided":
        near, far = np.abs(DISTANCES) < 4, DISTANCES % 4 == 0
    else:
        near, far = PLACES[:, None] // 4 == PLACES // 4, np.tile(PLACES % 4 == 3, (T, 1))
    seen = visible(segments, direction == "causal")[:, None] & np.stack([near, far])
    assert_is(mixer, attention(*projected(mixer), seen), segments)


@packings
def test_longformer(segments):
    """Beltagy et al. 2020, section 3.1: 2 tokens on each side, and a global token."""
    mixer = build(Longformer, window=4, num_global=1, **BOTH)
    same = visible(segments, False)[:, None]
    o = attention(*projected(mixer), same & ((np.abs(DISTANCES) <= 2) | (PLACES == 0)))
    first = attention(*projected(mixer, mixer.global_projections), same)
    assert_is(mixer, np.where(PLACES[:, None] == 0, first, o), segments)


@packings
def test_bigbird(segments):
    """Zaheer et al. 2020, section 2: neighbours, one random block, and the first block."""
    mixer = build(BigBird, block_size=2, random_blocks=1, **BOTH)
    block = PLACES // 2
    near = np.abs(block[:, None] - block) <= 1
    seen = np.stack([near | (block == 0) | (block == 0)[:, None]] * H)
    random = mixer._blocks(6)[..., 3:]
    assert random.shape == (H, 6, 1) and not np.array_equal(random[0], random[1])
    for head in range(H):
        for t in range(T):
            drawn = random[head, block[t], 0]
            if drawn >= 0:
                assert drawn > 0 and abs(drawn - block[t]) > 1
                seen[head, t] |= block == drawn
    o = attention(*projected(mixer), visible(segments, False)[:, None] & seen)
    assert_is(mixer, o, segments)


def test_bigbird_of_few_tokens_is_softmax_attention():
    sparse = build(BigBird, block_size=T, **BOTH)
    full = build(SoftmaxAttention, **BOTH)
    assert relative_rms(call(sparse, inputs()), call(full, inputs())) < TOLERANCE


@packings
def test_nystromformer(segments):
    """Xiong et al. 2021, equations 10 to 14, of landmarks that are means of 3 tokens."""
    mixer = build(Nystromformer, landmarks=4, convolution=3, **BOTH)
    first = np.ones((B, T), bool) if segments is None else segments == segments[:, :1]
    q, k, v = (x * first[:, None, :, None] for x in projected(mixer))
    held = np.pad(first, ((0, 0), (0, 1))).reshape(B, 1, 4, 3)

    def landmarks(x):
        parts = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))).reshape(B, H, 4, 3, K)
        return parts.sum(3) / np.maximum(held.sum(3), 1)[..., None]

    def kernel(q, k, seen):
        return softmax(q @ k.swapaxes(2, 3) / np.sqrt(K), seen)

    q_m, k_m, has = landmarks(q), landmarks(k), held.any(3)
    a = kernel(q_m, k_m, has[:, :, None]) * has[..., None]
    norms = np.abs(a).sum(-1).max(-1) * np.abs(a).sum(-2).max(-1)
    z, one = a.swapaxes(2, 3) / norms[..., None, None], np.eye(4)
    for _ in range(6):
        az = a @ z
        z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    o = kernel(q, k_m, has[:, :, None]) @ z @ kernel(q_m, k, first[:, None, None]) @ v
    padded = np.pad(v, ((0, 0), (0, 0), (1, 1), (0, 0)))
    taps = weights_of(mixer.taps)
    o += sum(taps[i][:, None, None] * padded[:, :, i : i + T] for i in range(3))
    assert_is(mixer, o, segments, first)


def test_nystromformer_with_a_landmark_for_each_token_is_softmax_attention():
    """The inverse is approximate: six steps leave the smallest singular values behind."""
    mixer = build(Nystromformer, landmarks=T, convolution=1, **BOTH)
    mixer.taps[...] = 0 * mixer.taps[...]
    mixer.key.kernel[...] = mixer.query.kernel[...]
    full = attention(*projected(mixer), True)
    y = call(mixer, inputs())
    assert relative_rms(y, dense(mixer.output, merge(full))) < 0.1


@packings
def test_sinkhorn(segments):
    """Tay et al. 2020, section 3: 11 tokens in 3 blocks of 4."""
    mixer = build(SinkhornAttention, length=16, block_size=4, iterations=3, **BOTH)
    first = np.ones((B, T), bool) if segments is None else segments == segments[:, :1]
    x = np.pad(inputs() * first[..., None], ((0, 0), (0, 1), (0, 0))).astype(np.float64)
    hidden = np.maximum(dense(mixer.sort_hidden, x.reshape(B, 3, 4, D).sum(2)), 0)
    logits = dense(mixer.sort, hidden).reshape(B, 3, H, 4)[..., :3].swapaxes(1, 2) / 0.75
    exist = np.pad(first, ((0, 0), (0, 1))).reshape(B, 3, 4)
    r = np.exp(logits) * (exist.any(2)[:, None, :, None] & exist.any(2)[:, None, None])
    for _ in range(3):
        for axis in (3, 2):
            total = r.sum(axis, keepdims=True)
            r = r / np.where(total > 0, total, 1)
    tokens = (
        np.pad(a * first[:, None, :, None], ((0, 0), (0, 0), (0, 1), (0, 0)))
        for a in projected(mixer)
    )
    q, k, v = (a.reshape(B, H, 3, 4, K) for a in tokens)
    k, v = (np.concatenate([a, np.einsum("bhgj,bhjck->bhgck", r, a)], 3) for a in (k, v))
    held = np.broadcast_to(exist.any(1, keepdims=True), exist.shape)
    seen = np.concatenate([exist, held], 2)[:, None, :, None]
    p = softmax(np.einsum("bhgck,bhgsk->bhgcs", q, k) / np.sqrt(K), seen)
    assert_is(mixer, (p @ v).reshape(B, H, 12, K)[:, :, :T], segments, first)


@packings
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("variant", ["dense", "random"])
def test_synthesizer(variant, direction, segments):
    """Tay et al. 2021, section 3.1: scores w_s^T relu(W x_t + b), or r_t^T w_s."""
    mixer = build(Synthesizer, variant=variant, length=T + 3, direction=direction)
    (v,) = projected(mixer, (mixer.value,))
    if variant == "dense":
        q = np.maximum(projected(mixer, (mixer.query,))[0], 0)
    else:
        q = weights_of(mixer.query)[:T].swapaxes(0, 1)[None]
    k = weights_of(mixer.keys)[:T].swapaxes(0, 1)[None]
    seen = visible(segments, direction == "causal")[:, None]
    assert_is(mixer, attention(q, k, v, seen), segments)


@packings
def test_transformer_xl(segments):
    """Dai et al. 2019, section 3.3, over a window of 4."""
    mixer = build(TransformerXL, window=4)
    q, k, v = projected(mixer)
    angles = PLACES[:, None] * 10_000.0 ** (-np.arange(0, D, 2) / D)
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    r = (features @ weights_of(mixer.distance.kernel)).reshape(T, H, K).swapaxes(0, 1)
    u, b = (weights_of(x)[:, None] for x in (mixer.content_bias, mixer.position_bias))
    by_distance = (q + b) @ r.swapaxes(1, 2)
    bias = np.take_along_axis(by_distance, np.maximum(DISTANCES, 0)[None, None], axis=-1)
    seen = visible(segments, True)[:, None] & (DISTANCES < 4)
    assert_is(mixer, attention(q + u, k, v, seen, bias), segments)


@packings
@pytest.mark.parametrize("spans", [(0.0, 0.15), (0.3, 1.0), (-0.2, 1.3)])
def test_adaptive_span(spans, segments):
    """Sukhbaatar et al. 2019: spans of 0 to 10 tokens, with a ramp of 3."""
    mixer = build(AdaptiveSpan, window=10, ramp=3)
    mixer.span[...] = jnp.asarray(spans)
    z = 10 * np.clip(spans, 0, 1)[:, None, None]
    mask = (
        np.clip((3 + z - DISTANCES) / 3, 0, 1) * (DISTANCES < 10) * visible(segments, True)[:, None]
    )
    q, k, v = projected(mixer)
    p = weights_of(mixer.distances)[np.clip(DISTANCES, 0, 9)]
    weights = mask * np.exp((q @ k.swapaxes(2, 3) + np.einsum("bhtk,tsk->bhts", q, p)) / K**0.5)
    assert_is(mixer, weights / weights.sum(-1, keepdims=True) @ v, segments)


def test_gradients_of_spans():
    """Finite differences, where distances are masked, on the ramp and before it."""
    graphdef, parameters = nnx.split(build(AdaptiveSpan, window=10, ramp=3))

    @jax.jit
    @jax.value_and_grad
    def loss(spans):
        given = nnx.State({**parameters, "span": parameters["span"].replace(spans)})
        return jnp.sum(nnx.merge(graphdef, given)(jnp.asarray(inputs()))[0] ** 2)

    spans = jnp.asarray([0.13, 0.44])
    for head, step in enumerate(np.eye(H, dtype="f4") * 1e-3):
        difference = float(loss(spans + step)[0] - loss(spans - step)[0])
        assert loss(spans)[1][head] == pytest.approx(difference / 2e-3, rel=2e-2)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SparseTransformer, {"pattern": "random"}, "pattern is 'random'"),
        (SparseTransformer, {"block_size": 0}, "block_size is 0"),
        (SparseTransformer, {"summary": 9, "block_size": 8}, r"summary \(9\) is more"),
        (Longformer, {}, "direction is 'causal'"),
        (Longformer, {"window": 5, **BOTH}, r"window \(5\) must be even"),
        (BigBird, {"window_blocks": 2, **BOTH}, "window_blocks is 2"),
        (Nystromformer, {"convolution": 2, **BOTH}, "convolution is 2"),
        (SinkhornAttention, {"length": 8, "iterations": 0, **BOTH}, "iterations is 0"),
        (Synthesizer, {"variant": "sparse"}, "variant is 'sparse'"),
        (TransformerXL, {"window": 1}, "window is 1"),
        (AdaptiveSpan, {"ramp": 0}, "ramp is 0"),
    ],
)
def test_misuse_names_the_argument(kind, options, message):
    with pytest.raises(ValueError, match=message):
        build(kind, **options)


def test_a_row_that_is_too_long_is_an_error():
    with pytest.raises(ValueError, match=r"11 tokens are more than length \(8\)"):
        call(build(SinkhornAttention, length=8, **BOTH), inputs())
