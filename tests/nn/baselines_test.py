"""GAU, FLASH, ReLA, LSH attention and Linformer: whole layers against the papers' equations.

Transcribed in NumPy float64 from the module's own weights; what the contract of a mixer asks for
besides is in mixers_test.py, and the details of the mechanisms are in tests/ops.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixers.gated_attention_unit import Flash, FlashQuad
from linear_transformer.nn.mixers.linformer import Linformer
from linear_transformer.nn.mixers.lsh_attention import LSHAttention
from linear_transformer.nn.mixers.rectified_attention import RectifiedAttention
from tests.ops.contract import relative_rms

B, T, D, H = 2, 11, 8, 2
# fp32 rounding over projections and short sums, before a norm that may enlarge it.
TOLERANCE = 3e-6
QUICK = {"xla_backend_optimization_level": 0}
# A padded row, as a classifier gives it, and a packed one.
SEGMENTS = np.array([[1] * 7 + [0] * 4, [3] * 2 + [4] * 9], np.int32)


def build(kind, **options):
    """Every parameter away from its initial value, at the scale that unit variance asks for."""
    graphdef, parameters = nnx.split(kind(D, H, rngs=nnx.Rngs(0), **options))
    rng = np.random.default_rng(0)
    noise = functools.partial(rng.normal, scale=0.4)
    parameters = jax.tree.map(lambda p: p + noise(size=p.shape).astype("f4"), parameters)
    return nnx.merge(graphdef, parameters)


def inputs():
    return np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)


def call(mixer, x, segments=None):
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    apply = jax.jit(
        lambda x, ids: mixer(x, segment_ids=ids, positions=positions)[0], compiler_options=QUICK
    )
    return apply(x, segments)


def weights_of(parameter):
    return np.asarray(parameter[...], np.float64)


def dense(layer, x):
    return x @ weights_of(layer.kernel) + weights_of(layer.bias)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def turned(x):
    """Rotary positions of (..., T, K) as complex numbers."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[-2])[:, None] * 10_000.0 ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def visible(segments, causal):
    """(B, T, T): which pairs may meet."""
    same = np.ones((B, T, T), bool)
    if segments is not None:
        same = segments[:, :, None] == segments[:, None]
    return same & (np.tri(T) > 0) if causal else same


def gated_unit(mixer, x, attention):
    """O = (U * A V) W_o, with `attention(bias, *queries_and_keys, v)` for A V."""
    uvz = dense(mixer.projection, x)
    uvz = uvz * sigmoid(uvz)
    width = 2 * D
    u, v, z = uvz[..., :width], uvz[..., width : 2 * width], uvz[..., 2 * width :]
    copies = [
        turned(scale * z + offset)
        for scale, offset in zip(weights_of(mixer.scales), weights_of(mixer.offsets), strict=True)
    ]
    a, b = weights_of(mixer.relative)
    bias = turned(np.tile(a, (T, 1))) @ turned(np.tile(b, (T, 1))).T  # (m, n): <R_m a, R_n b>
    return dense(mixer.output, u * attention(bias, *copies, v))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_flash_quad(direction, packed):
    """Hua et al. 2022, section 3.1: A = relu(Q K^T / n + b)^2."""
    mixer = build(FlashQuad, direction=direction, key_width=6, divisor=2)
    segments = SEGMENTS if packed else None

    def attention(bias, q, k, v):
        kernel = np.maximum(q @ k.swapaxes(1, 2) / 2 + bias, 0) ** 2
        return np.where(visible(segments, direction == "causal"), kernel, 0) @ v

    expected = gated_unit(mixer, inputs().astype(np.float64), attention)
    assert relative_rms(call(mixer, inputs(), segments), expected) < TOLERANCE


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_flash(direction, packed):
    """Hua et al. 2022, section 3.2: quadratic within chunks of 4, linear across."""
    mixer = build(Flash, direction=direction, key_width=6, chunk_size=4)
    segments = SEGMENTS if packed else None
    chunk = np.arange(T) // 4
    own, causal = chunk[:, None] == chunk, direction == "causal"
    linear_part = chunk[:, None] > chunk if causal else np.ones((T, T), bool)

    def attention(bias, q, k, linear_q, linear_k, v):
        quadratic = np.where(own, np.maximum(q @ k.swapaxes(1, 2) / 4 + bias, 0) ** 2, 0)
        linear = np.where(linear_part, linear_q @ linear_k.swapaxes(1, 2) / 4, 0)
        return np.where(visible(segments, causal), quadratic + linear, 0) @ v

    expected = gated_unit(mixer, inputs().astype(np.float64), attention)
    assert relative_rms(call(mixer, inputs(), segments), expected) < TOLERANCE


def split(x):
    return x.reshape(B, T, H, -1).swapaxes(1, 2)


def merge(x):
    return x.swapaxes(1, 2).reshape(B, T, D)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"window": 3}, {"rotary": True}, {"direction": "bidirectional"}]
)
def test_rela(options, packed):
    """Zhang et al. 2021: relu(Q K^T / sqrt(d)) V, then scale * x / RMS(x) * sigmoid(gate * x)."""
    mixer = build(RectifiedAttention, **options)
    segments = SEGMENTS if packed else None
    projected = dense(mixer.projection, inputs().astype(np.float64))
    q, k, v = (split(projected[..., i * D : (i + 1) * D]) for i in range(3))
    if "rotary" in options:
        q, k = turned(q), turned(k)
    scores = np.maximum(q @ k.swapaxes(2, 3) / np.sqrt(D / H), 0)
    seen = visible(segments, options.get("direction") is None)
    seen &= np.arange(T)[:, None] - np.arange(T) < options.get("window", T)
    o = merge(np.where(seen[:, None], scores, 0) @ v)
    rms = np.sqrt(np.mean(o**2, -1, keepdims=True) + 1e-6)
    o = weights_of(mixer.norm.scale) * o / rms * sigmoid(weights_of(mixer.norm.gate) * o)
    expected = dense(mixer.output, o)
    assert relative_rms(call(mixer, inputs(), segments), expected) < TOLERANCE


@pytest.mark.parametrize("chunking", ["window", "sorted"])
def test_lsh_of_one_bucket_pair(chunking):
    """Kitaev et al. 2020, equations 1 to 5, at a chunk that holds all: every one of a bucket."""
    mixer = build(LSHAttention, rounds=1, buckets=2, chunk_size=T, chunking=chunking)
    x = inputs().astype(np.float64)
    q, v = split(dense(mixer.query, x)), split(dense(mixer.value, x))
    rotation = np.asarray(mixer.rotations, np.float64)[0]
    positive = (q @ rotation)[..., 0] > 0  # argmax [x r; -x r]
    scores = q @ (q / np.linalg.norm(q, axis=-1, keepdims=True)).swapaxes(2, 3) / np.sqrt(D / H)
    seen = (positive[..., :, None] == positive[..., None, :]) & (np.tri(T) > 0)
    scores = np.where(seen, scores - 1e5 * np.eye(T), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected = dense(mixer.output, merge(p / p.sum(-1, keepdims=True) @ v))
    assert relative_rms(call(mixer, inputs()), expected) < TOLERANCE


def test_lsh_rotations_are_constants():
    one, same, other = (LSHAttention(D, H, seed=s, rngs=nnx.Rngs(s)) for s in (0, 0, 1))
    assert np.array_equal(one.rotations, same.rotations)
    assert not np.array_equal(one.rotations, other.rotations)
    names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(one))}
    assert not any("rotation" in name for name in names)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_linformer(share, padded):
    """Wang et al. 2020, equation 7: softmax(Q (E K)^T / sqrt(d)) F V, with 3 combinations."""
    options = {"direction": "bidirectional", "length": T + 2, "compressed": 3, "share": share}
    mixer = build(Linformer, **options)
    projected = dense(mixer.projection, inputs().astype(np.float64))
    q, k, v = (split(projected[..., i * D : (i + 1) * D]) for i in range(3))
    first = SEGMENTS[:, :1] == SEGMENTS if padded else np.ones((B, T), bool)
    e = weights_of(mixer.combine_keys)[:, :T]
    f = e if share else weights_of(mixer.combine_values)[:, :T]
    k, v = e @ (k * first[:, None, :, None]), f @ (v * first[:, None, :, None])
    p = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(D / H))
    expected = dense(mixer.output, merge(p / p.sum(-1, keepdims=True) @ v))
    y = call(mixer, inputs(), SEGMENTS if padded else None)
    assert relative_rms(np.asarray(y)[first], expected[first]) < TOLERANCE


def test_linformer_padding_has_no_influence():
    mixer = build(Linformer, direction="bidirectional", length=T, compressed=3)
    x = inputs()
    changed = np.where(SEGMENTS[..., None] == SEGMENTS[:, :1, None], x, 9.0).astype("f4")
    first = SEGMENTS[:, :1] == SEGMENTS
    y, z = (np.asarray(call(mixer, a, SEGMENTS)) for a in (x, changed))
    assert np.array_equal(y[first], z[first])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Flash, {"chunk_size": 0}, "chunk_size is 0"),
        (Flash, {"expansion": 0}, "expansion is 0"),
        (Flash, {"key_width": 7}, "key_width is 7"),
        (Flash, {"direction": "left"}, "direction is 'left'"),
        (FlashQuad, {"divisor": 0}, "divisor is 0"),
        (FlashQuad, {"cache_capacity": 0}, "cache_capacity is 0"),
        (RectifiedAttention, {"window": 0}, "window is 0"),
        (RectifiedAttention, {"cache_capacity": 0}, "cache_capacity is 0"),
        (RectifiedAttention, {"direction": "left"}, "direction is 'left'"),
        (RectifiedAttention, {"direction": "bidirectional", "window": 3}, "window is causal"),
        (LSHAttention, {"buckets": 5}, "buckets is 5"),
        (LSHAttention, {"rounds": 0}, "rounds is 0"),
        (LSHAttention, {"chunking": "fixed"}, "chunking is 'fixed'"),
        (LSHAttention, {"direction": "bidirectional"}, "needs chunking 'sorted'"),
        (Linformer, {"length": 4}, "linformer is 'bidirectional' only"),
        (Linformer, {"length": 0, "direction": "bidirectional"}, "length is 0"),
    ],
)
def test_misuse_names_the_argument(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(D, H, rngs=nnx.Rngs(0), **options)


def test_no_state_where_there_is_none():
    both = {"direction": "bidirectional", "rngs": nnx.Rngs(0)}
    for mixer in (
        Flash(D, H, **both),
        FlashQuad(D, H, **both),
        RectifiedAttention(D, H, **both),
        LSHAttention(D, H, chunking="sorted", **both),
        Linformer(D, H, length=T, **both),
    ):
        with pytest.raises(ValueError, match="bidirectional"):
            mixer.init_state(B)
    with pytest.raises(ValueError, match="cannot decode"):
        LSHAttention(D, H, chunking="sorted", rngs=nnx.Rngs(0)).init_state(B)
    with pytest.raises(ValueError, match=r"more than length \(4\)"):
        Linformer(D, H, length=4, **both)(jnp.asarray(inputs()))
