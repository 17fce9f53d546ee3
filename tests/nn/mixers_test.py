"""Every mixer of the table: one function whether called whole, in parts, or token by token.

A mixer that is added to `MIXERS` is tested here with its default options, at every split; options
worth a test of their own go in OPTIONS.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.mixer import reset_rows
from linear_transformer.nn.mixers import MIXERS
from tests.ops.contract import assert_agree, relative_rms

B, T, D, H = 3, 20, 8, 2
WINDOW = 5
# fp32 rounds sums of 20 terms to a few 1e-7, and divides by sums that are never near 0.
TOLERANCE = 1e-5

OPTIONS = {
    "linear": {
        "chunks": {"chunk_size": 4},
        "rotary": {"rotary": True, "chunk_size": 4},
        "convolution": {"convolution": 4},
        "convolution rotary": {"convolution": 2, "rotary": True},
        "unnormalized": {"normalize": False, "feature_map": "identity"},
        "unnormalized rotary": {"normalize": False, "rotary": True},
        "recurrent": {"form": "recurrent", "key_width": 6},
        "parallel": {"form": "parallel", "bias": False},
        "associative": {"form": "associative"},
        "relu": {"feature_map": "relu", "epsilon": 1e-2},
        "squared_relu": {"feature_map": "squared_relu", "epsilon": 1e-2},
        "softmax": {"feature_map": "softmax"},
        "exp": {"feature_map": "exp"},
        "lrpe": {"lrpe": True, "chunk_size": 4},
        "output norm": {"output_norm": "rmsnorm"},
    },
    "diag": {
        "relu": {"block_size": 6, "output_norm": "simplermsnorm", "lrpe": True},
        "softmax block": {"block_size": 6, "scores": "softmax", "lrpe": True},
        "relu without norm": {"block_size": 6, "bias": False},
        "blocks of 3": {"block_size": 3, "scores": "softmax"},
        "one block": {"scores": "softmax"},
    },
    "parallel": {
        "block": {"branches": {"diag": {"block_size": 6, "scores": "softmax"}, "norm": {}}}
    },
    "softmax": {
        "cache": {"cache_capacity": T},
        "window": {"window": WINDOW},
        "window of 1": {"window": 1},
        "rotary": {"rotary": True, "cache_capacity": 3 * T},
        "window rotary": {"rotary": True, "window": WINDOW, "bias": False},
        "blockwise": {"form": "blockwise", "window": WINDOW},
    },
    "flash": {
        "chunks": {"chunk_size": 4, "key_width": 6, "bias": False},
        "one chunk": {"key_width": 6, "expansion": 1},
        "chunks of 1": {"chunk_size": 1, "key_width": 6, "rotary": False},
    },
    "flash_quad": {
        "cache": {"key_width": 6, "divisor": 1, "cache_capacity": T, "bias": False},
        "no rotary": {"key_width": 4, "divisor": 2, "rotary": False, "bias": False},
    },
    "rela": {
        "cache": {"cache_capacity": T},
        "window": {"window": WINDOW},
        "window of 1": {"window": 1},
        "window rotary": {"window": WINDOW, "rotary": True},
    },
    "efficient": {
        "chunks": {"chunk_size": 4},
        "recurrent": {"form": "recurrent", "key_width": 6, "bias": False},
    },
    "performer": {
        "chunks": {"chunk_size": 4, "features": 12},
        "relu kernel": {"kernel": "relu", "features": 12},
    },
    "cosformer": {
        # Enough features that no key is dead to a query.
        "chunks": {"chunk_size": 4, "max_length": 2 * T, "key_width": 16},
    },
    "rfa": {
        "chunks": {"chunk_size": 4},
        "gate": {"gate": True, "chunk_size": 4, "learn_scale": False},
    },
    "retnet": {
        "chunks": {"chunk_size": 4},
        "plain": {"rotary": False, "normalize": False, "value_expansion": 1},
    },
    "lightning": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "lightning_lrpe": {"lrpe": {"depth": 0.9}},
    "mamba2": {
        "chunks": {"chunk_size": 4, "state_width": 6},
        "groups": {"groups": 2, "state_width": 3, "convolution": 2, "expansion": 1},
    },
    "mlstm": {"chunks": {"chunk_size": 4}},
    "gla": {"chunks": {"chunk_size": 4}},
    "hgrn2": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "rwkv6": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "lion": {
        "chunks": {"chunk_size": 4},
        "scalar": {"gate": "scalar"},
    },
    "mamba": {"chunks": {"chunk_size": 4, "state_width": 3, "dt_rank": 2}},
    "lru": {"chunks": {"chunk_size": 4, "state_width": 6}},
    "lsh": {
        "cache": {"rounds": 2, "buckets": 4, "chunk_size": 3, "cache_capacity": T},
        "one round": {"rounds": 1, "buckets": 2, "chunk_size": T},
    },
    "delta_net": {
        "chunks": {"chunk_size": 4, "key_width": 6},
        "recurrent": {"form": "recurrent", "negative_eigenvalues": True},
        "associative": {"form": "associative", "convolution": 2},
    },
    "gated_delta_net": {"chunks": {"chunk_size": 4, "negative_eigenvalues": True}},
    "delta_product": {"chunks": {"chunk_size": 8, "steps": 3}},
    "kda": {"chunks": {"chunk_size": 4, "key_width": 6}},
    "rwkv7": {"chunks": {"chunk_size": 8, "depth": 0.5}},
}
CASES = [
    (name, label)
    for name in MIXERS
    for label in OPTIONS.get(name, {"default": {}})
    if name not in ("linformer", "convolution")  # look ahead whatever their options
]
# The options that change how a state is kept; the others are pointwise or only change the form.
CORE = [
    case
    for case in CASES
    if case[0] not in OPTIONS
    or case[1] in ("chunks", "convolution", "cache", "window", "softmax block", "block")
    or case in (("linear", "rotary"), ("diag", "relu"))
]
# Mixers in which a token may have no influence at all, since a weight may be exactly 0.
SPARSE = ("flash", "flash_quad", "rela", "lsh")
# Compiling is all that these tests cost, and optimising would double it.
QUICK = {"xla_backend_optimization_level": 0}

# A boundary at 7 and none after it, no boundary at all, and documents of 1 and 3 tokens.
SEGMENTS = np.array([[1] * 7 + [2] * 13, [4] * T, [1] * 3 + [2] + [3] * 9 + [4] * 7], np.int32)
PACKED_POSITIONS = np.array(
    [np.r_[:7, :13], np.r_[:T], np.r_[:3, :1, :9, :7]],
    np.int32,
)
PACKED_SPLITS = (7, 13)  # at the boundary of one row and inside a document of another


@functools.cache
def build(name, label):
    """The mixer with every parameter, biases too, away from its initial value, and one jit."""
    options = OPTIONS.get(name, {}).get(label, {})
    graphdef, parameters = nnx.split(MIXERS[name](D, H, rngs=nnx.Rngs(0), **options))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype("f4"), parameters)
    mixer = nnx.merge(graphdef, parameters)

    def apply(x, state, segment_ids, positions):
        return nnx.merge(graphdef, parameters)(
            x, state, segment_ids=segment_ids, positions=positions
        )

    return mixer, jax.jit(apply, compiler_options=QUICK)


def inputs(packed=False, seed=1):
    x = np.random.default_rng(seed).normal(size=(B, T, D)).astype(np.float32)
    positions = PACKED_POSITIONS if packed else np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return x, SEGMENTS if packed else None, positions


def cut(data, start, stop):
    return [None if a is None else a[:, start:stop] for a in data]


def call(apply, data, state=None):
    x, segment_ids, positions = data
    return apply(x, state, segment_ids, positions)


def by_token(apply, data, state):
    """All tokens one at a time: outputs and the last state."""
    outputs = []
    for i in range(data[0].shape[1]):
        y, state = call(apply, cut(data, i, i + 1), state)
        outputs.append(y)
    return np.concatenate(outputs, axis=1), state


def assert_cached_is_full(mixer, apply, data, splits):
    """Prefill to the split, the rest in one call: equal outputs, and one state at the end."""
    full, _ = call(apply, data)
    end = None
    for split in splits:
        head, state = call(apply, cut(data, 0, split), mixer.init_state(B))
        tail, state = call(apply, cut(data, split, T), state)
        y = np.concatenate([head, tail], axis=1)
        for row in range(B):  # a fault in one short row must not hide in the mean
            assert_agree({"y": y[row, :split]}, {"y": full[row, :split]}, TOLERANCE)
            assert_agree({"y": y[row, split:]}, {"y": full[row, split:]}, TOLERANCE)
        end = state if end is None else end
        for actual, expected in zip(jax.tree.leaves(state), jax.tree.leaves(end), strict=True):
            assert relative_rms(actual, expected) <= TOLERANCE


@pytest.mark.parametrize(("name", "label"), CORE)
def test_cached_is_full(name, label):
    splits = range(1, T) if name in ("linear", "softmax") else (1, 10, 19)
    assert_cached_is_full(*build(name, label), inputs(), splits)


@pytest.mark.parametrize(("name", "label"), CORE)
def test_cached_is_full_packed(name, label):
    assert_cached_is_full(*build(name, label), inputs(packed=True), PACKED_SPLITS)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "label"), CASES)
def test_cached_is_full_in_all_cases(name, label, packed):
    assert_cached_is_full(*build(name, label), inputs(packed), range(1, T))


@pytest.mark.parametrize(
    ("name", "label", "packed"),
    [(*case, True) for case in CASES] + [(*case, False) for case in CORE],
)
def test_token_by_token_is_full(name, label, packed):
    mixer, apply = build(name, label)
    data = inputs(packed)
    full, _ = call(apply, data)
    y, _ = by_token(apply, data, mixer.init_state(B))
    assert_agree({"y": y}, {"y": full}, TOLERANCE)


@pytest.mark.parametrize(("name", "label"), CORE)
def test_tokens_after_a_prefill(name, label):
    mixer, apply = build(name, label)
    data = inputs()
    full, _ = call(apply, data)
    _, state = call(apply, cut(data, 0, 7), mixer.init_state(B))
    y, _ = by_token(apply, cut(data, 7, T), state)
    assert_agree({"y": y}, {"y": full[:, 7:]}, TOLERANCE)


@pytest.mark.parametrize("fault", ["dropped state", "no segments", "shifted state", "one row"])
@pytest.mark.parametrize(("name", "label"), CORE)
def test_negative_control(name, label, fault):
    """The check that the mixers pass is one that a broken mixer fails."""
    mixer, apply = build(name, label)

    def broken(x, state, segment_ids, positions):
        if state is None:
            return apply(x, state, segment_ids, positions)
        if fault == "no segments":
            return apply(x, state, np.ones_like(segment_ids), positions)
        y, state = apply(x, state, segment_ids, positions)
        if fault == "dropped state":
            state = mixer.init_state(B)
        elif fault == "shifted state":
            state = jax.tree.map(lambda s: jnp.roll(s, 1, axis=0), state)
        elif fault == "one row":
            state = reset_rows(state, jnp.array([False, False, True]))
        return y, state

    with pytest.raises(AssertionError, match="relative RMS"):
        assert_cached_is_full(mixer, broken, inputs(packed=True), (10,))


@pytest.mark.parametrize(("name", "label"), CASES)
def test_segment_goes_on_when_no_ids_are_given(name, label):
    """A packed prompt, then tokens without ids: they belong to the last document."""
    mixer, apply = build(name, label)
    data = inputs(packed=True)
    full, _ = call(apply, data)
    # The last documents have 1, 8 and 4 tokens so far, and go on to 13.
    _, state = by_token(apply, cut(data, 0, 8), mixer.init_state(B))
    x, _, positions = cut(data, 8, 13)
    y, _ = by_token(apply, [x, None, positions], state)
    for row in range(B):
        assert relative_rms(y[row], full[row, 8:13]) <= TOLERANCE


@pytest.mark.parametrize(("name", "label"), CASES)
def test_state_is_zeros_of_constant_size(name, label):
    mixer, apply = build(name, label)
    state = mixer.init_state(B)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(state))
    assert all(x.shape[0] == B for x in jax.tree.leaves(state))
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)  # else the state could not be donated
    described = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for length in (1, 4, T):
        x, _, positions = cut(inputs(), 0, length)
        _, after = jax.eval_shape(apply, x, state, None, positions)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == described
    assert call(apply, inputs())[1] is None


@pytest.mark.parametrize(("name", "label"), CASES)
def test_reset_rows_is_a_fresh_start(name, label):
    mixer, apply = build(name, label)
    first, second = cut(inputs(seed=2), 0, 4), cut(inputs(seed=3), 0, 3)
    fresh, _ = by_token(apply, second, mixer.init_state(B))
    _, state = by_token(apply, first, mixer.init_state(B))
    carried, _ = by_token(apply, second, state)
    rows = np.array([True, False, True])
    y, _ = by_token(apply, second, reset_rows(state, jnp.asarray(rows)))
    assert np.array_equal(y[rows], fresh[rows])
    assert np.array_equal(y[~rows], carried[~rows])
    if label != "window of 1":  # which has nothing to carry
        assert relative_rms(carried[rows], fresh[rows]) > 1e-2


@pytest.mark.parametrize(("name", "label"), CASES)
def test_rows_of_different_length(name, label):
    """One batch of rows that have read 7, 3 and 13 tokens: each row goes on where it is."""
    mixer, apply = build(name, label)
    data = inputs()
    full, _ = call(apply, data)
    lengths = (7, 3, 13)
    states = [by_token(apply, cut(data, 0, n), mixer.init_state(B))[1] for n in lengths]
    state = jax.tree.map(lambda *s: jnp.stack([s[b][b] for b in range(B)]), *states)
    x, _, positions = data
    following = [np.stack([a[b, n : n + 1] for b, n in enumerate(lengths)]) for a in (x, positions)]
    y, _ = apply(following[0], state, None, following[1])
    expected = np.stack([full[b, n : n + 1] for b, n in enumerate(lengths)])
    for row in range(B):
        assert relative_rms(y[row], expected[row]) <= TOLERANCE


def gradient_of(loss, x):
    return jax.jit(jax.grad(loss), compiler_options=QUICK)(x)


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize(("name", "label"), CORE)
def test_causal_by_gradient(name, label, stateful):
    mixer, _ = build(name, label)
    x, positions = map(jnp.asarray, inputs()[::2])
    state = mixer.init_state(B) if stateful else None
    gradient = gradient_of(
        lambda x: jnp.sum(mixer(x, state, positions=positions)[0][:, 11] ** 2), x
    )
    seen = np.any(np.asarray(gradient) != 0, axis=-1)
    window = getattr(mixer, "window", None)
    first = 0 if window is None else 12 - window
    if name == "diag":
        first = 11 // mixer.block_size * mixer.block_size
    expected = (np.arange(T) <= 11) & (np.arange(T) >= first)
    if name in SPARSE or label == "relu":
        assert not np.any(seen & ~expected) and np.mean(seen[:, expected]) > 0.3
    else:
        assert np.array_equal(seen, np.tile(expected, (B, 1)))


@pytest.mark.parametrize("split", [None, 5, 7])
@pytest.mark.parametrize(("name", "label"), CORE)
def test_no_gradient_crosses_a_boundary(name, label, split):
    """Exactly 0, in one call and through the state, split inside and at the boundary (7)."""
    mixer, _ = build(name, label)
    x, segment_ids, positions = map(jnp.asarray, cut(inputs(packed=True), 0, 12))

    def apply(x, state, segment_ids, positions):
        return mixer(x, state, segment_ids=segment_ids, positions=positions)

    def second_document(x):
        data = x, segment_ids, positions
        if split is None:
            return jnp.sum(call(apply, data)[0][0, 7:] ** 2)
        head, state = call(apply, cut(data, 0, split), mixer.init_state(B))
        tail, _ = call(apply, cut(data, split, 12), state)
        return jnp.sum(jnp.concatenate([head, tail], axis=1)[0, 7:] ** 2)

    gradient = np.asarray(gradient_of(second_document, x))[0]
    assert np.all(gradient[:7] == 0)
    seen = np.any(gradient[7:] != 0, axis=-1)
    assert np.any(seen) if name in SPARSE else np.all(seen)


# --- Transcriptions of the papers, in NumPy float64, from the module's own weights ---------------


def dense(layer, x):
    y = x @ np.asarray(layer.kernel[...], np.float64)
    return y if layer.bias is None else y + np.asarray(layer.bias[...], np.float64)


def heads(x):
    return x.reshape(B, T, H, -1)


def turned(x, positions):
    """Rotary positions as complex numbers: pair i is multiplied by exp(1j * m * theta_i)."""
    half = x.shape[-1] // 2
    theta = 10_000.0 ** (-2 * np.arange(half) / x.shape[-1])
    z = x[..., :half] + 1j * x[..., half:]
    z = z * np.exp(1j * positions[:, :, None, None] * theta)
    return np.concatenate([z.real, z.imag], axis=-1)


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
    """Vaswani et al. 2017, equation 1, one query at a time."""
    q, k, v = (heads(dense(layer, x)) for layer in (mixer.query, mixer.key, mixer.value))
    if mixer.rotary:
        q, k = turned(q, positions), turned(k, positions)
    o = np.zeros(v.shape)
    for b, i, h in np.ndindex(B, T, H):
        first = 0 if mixer.window is None else max(0, i + 1 - mixer.window)
        seen = [j for j in range(first, i + 1) if segment_ids[b, j] == segment_ids[b, i]]
        weights = np.exp(k[b, seen, h] @ q[b, i, h] / np.sqrt(q.shape[-1]))
        o[b, i, h] = weights @ v[b, seen, h] / weights.sum()
    return dense(mixer.output, o.reshape(B, T, D))


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
    ],
)
def test_equations(name, label, oracle, packed):
    """fp32 rounding over projections, 20 terms and a division: a few 1e-7, so 3e-6 is ample."""
    mixer, apply = build(name, label)
    data = inputs(packed)
    x, segment_ids, positions = data
    ids = np.zeros((B, T), np.int32) if segment_ids is None else segment_ids
    expected = oracle(mixer, x.astype(np.float64), ids, positions)
    assert_agree({"y": call(apply, data)[0]}, {"y": expected}, 3e-6)


@pytest.mark.parametrize(("name", "label"), CORE)
def test_bfloat16_and_float64_states(name, label):
    """The state that comes out has the type of the one that goes in, so a scan can carry it."""
    options = OPTIONS.get(name, {}).get(label, {})
    for dtype in ("bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            mixer = MIXERS[name](D, H, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype), **options)
            state = mixer.init_state(B)
            x, _, positions = inputs()
            x = jnp.asarray(x, dtype)
            y, after = jax.eval_shape(
                lambda x, s, p, mixer=mixer: mixer(x, s, positions=p), x, state, positions
            )
            assert y.dtype == dtype
            types = [jax.tree.map(lambda a: a.dtype, tree) for tree in (state, after)]
            assert types[0] == types[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"feature_map": "cosine"}, "feature_map is 'cosine'"),
        ("linear", {"form": "fast"}, "form is 'fast'"),
        ("linear", {"chunk_size": 0}, "chunk_size is 0"),
        ("linear", {"key_width": 0}, "key_width is 0"),
        ("linear", {"convolution": 1}, "convolution is 1"),
        ("linear", {"key_width": 3, "rotary": True}, "even key width"),
        ("delta_net", {"form": "parallel"}, "form is 'parallel'"),
        ("delta_net", {"convolution": 1}, "convolution is 1"),
        ("delta_net", {"key_width": 0}, "key_width is 0"),
        ("delta_product", {"steps": 0}, "steps is 0"),
        ("rwkv7", {"rate_rank": 0}, "rate_rank is 0"),
        ("softmax", {"window": 0}, "window is 0"),
        ("softmax", {"cache_capacity": 0}, "cache_capacity is 0"),
        ("softmax", {"form": "fast"}, "form is 'fast'"),
    ],
)
def test_misuse_names_the_argument(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](D, H, rngs=nnx.Rngs(0), **options)
