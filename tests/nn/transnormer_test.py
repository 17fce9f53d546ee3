"""TransNormer's layers against Qin et al. 2022, transcribed in NumPy float64; both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.layers.feed_forward import FeedForward
from linear_transformer.nn.layers.positions import LRPE
from linear_transformer.nn.mixers.registry import MIXERS
from tests.ops.contract import assert_agree, relative_rms

B, T, D, H, W = 2, 17, 16, 2, 6
K = D // H
# fp32 rounds sums of 17 terms to a few 1e-7; a ReLU row with one small score is divided by it.
TOLERANCE = 5e-6
QUICK = {"xla_backend_optimization_level": 0}
X = np.random.default_rng(0).normal(size=(B, T, D))
IDS = np.array([[1] * 7 + [2] * 6 + [5] * 4, [3] * 16 + [4]], np.int32)
PLACES = np.tile(np.arange(T, dtype=np.int32), (B, 1))


def perturbed(module, seed=0):
    """The module with every parameter away from its initial value."""
    graphdef, parameters = nnx.split(module)
    rng = np.random.default_rng(seed)
    parameters = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype("f4"), parameters)
    return nnx.merge(graphdef, parameters)


@functools.cache
def make(name, **options):
    return perturbed(MIXERS[name](D, H, rngs=nnx.Rngs(0), **options))


@functools.partial(jax.jit, static_argnums=0)
def apply(graphdef, parameters, x, ids):
    positions = jnp.asarray(PLACES[:, : x.shape[1]])
    return nnx.merge(graphdef, parameters)(x, segment_ids=ids, positions=positions)[0]


def call(mixer, ids=None, time=T):
    """What the mixer makes of the first tokens of X."""
    return apply(*nnx.split(mixer), np.asarray(X[:, :time], np.float32), ids)


def value(parameter):
    return np.asarray(parameter[...], np.float64)


def dense(layer, x):
    y = x @ value(layer.kernel)
    return y if layer.bias is None else y + value(layer.bias)


def heads(x):
    return x.reshape(B, T, H, K)


def simple_rms_norm(x):
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1]) + 1e-8)


def lrpe(layer, x, places):
    """(I - 2 u u^T) x, then pair i as a complex number times exp(1j * place * theta_i)."""
    u = value(layer.reflection)
    u = u / np.sqrt(np.sum(u**2))
    x = x @ (np.eye(K) - 2 * np.outer(u, u))
    z = x[..., : K // 2] + 1j * x[..., K // 2 :]
    z = z * np.exp(1j * places[:, :, None, None] * value(layer.frequencies))
    return np.concatenate([z.real, z.imag], axis=-1)


FEATURES = {
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "elu_plus_one": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1,
}


def visible(ids, causal, block=None):
    t = np.arange(T)
    seen = ids[:, :, None] == ids[:, None, :]
    if causal:
        seen = seen & (t[None, :] <= t[:, None])
    if block:
        seen = seen & (t[None, :] // block == t[:, None] // block)
    return seen[:, None]


def norm_oracle(mixer, ids, causal):
    """Equations 13-14: O = XNorm(phi(Q) (phi(K)^T V)), then the output projection."""
    q, k, v = (heads(dense(layer, X)) for layer in (mixer.query, mixer.key, mixer.value))
    q, k = (FEATURES[mixer.feature_map](a) for a in (q, k))
    if mixer.lrpe is not None:
        q, k = lrpe(mixer.lrpe, q, PLACES), lrpe(mixer.lrpe, k, PLACES)
    weights = np.einsum("bthk,bshk->bhts", q, k) * visible(ids, causal)
    o = np.einsum("bhts,bshv->bthv", weights, v).reshape(B, T, D)
    return dense(mixer.output, simple_rms_norm(o))


def diag_oracle(mixer, ids, causal):
    """Section 4.2: attention within blocks of W; places restart in each block."""
    q, k, v = (heads(dense(layer, X)) for layer in (mixer.query, mixer.key, mixer.value))
    q = q * K**-0.5
    if mixer.lrpe is not None:
        q, k = (lrpe(mixer.lrpe, a, PLACES % W) for a in (q, k))
    scores = np.einsum("bthk,bshk->bhts", q, k)
    seen = visible(ids, causal, block=W)
    if mixer.scores == "relu":
        weights = np.maximum(scores, 0) * seen
    else:
        weights = np.exp(scores) * seen
        weights = weights / weights.sum(-1, keepdims=True)
    o = np.einsum("bhts,bshv->bthv", weights, v).reshape(B, T, D)
    return dense(mixer.output, simple_rms_norm(o) if mixer.output_norm is not None else o)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("feature_map", ["elu", "elu_plus_one"])
def test_norm_attention(feature_map, direction, packed):
    mixer = make("norm", feature_map=feature_map, direction=direction)
    ids = IDS if packed else np.zeros_like(IDS)
    expected = norm_oracle(mixer, ids, direction == "causal")
    assert_agree({"y": call(mixer, ids)}, {"y": expected}, TOLERANCE)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize(
    "options",
    [
        {"scores": "relu", "output_norm": "simplermsnorm", "lrpe": True},
        {"scores": "softmax", "lrpe": True},
        {"scores": "softmax"},
    ],
    ids=["T1", "T2", "without lrpe"],
)
def test_diag_attention(options, direction, packed):
    mixer = make("diag", block_size=W, direction=direction, **options)
    ids = IDS if packed else np.zeros_like(IDS)
    expected = diag_oracle(mixer, ids, direction == "causal")
    assert_agree({"y": call(mixer, ids)}, {"y": expected}, TOLERANCE)


def test_the_forms_of_norm_attention_are_one_function():
    expected = call(make("norm", form="parallel"), IDS)
    for form in ("chunk", "recurrent"):
        assert_agree({"y": call(make("norm", form=form), IDS)}, {"y": expected}, TOLERANCE)


def test_lrpe():
    layer = perturbed(LRPE(K, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).normal(size=(B, T, H, K))
    places = PLACES + np.array([[0], [40]], np.int32)
    y = layer(jnp.asarray(x, jnp.float32), jnp.asarray(places))
    # Angles of up to 57 * theta, in fp32.
    assert relative_rms(y, lrpe(layer, x, places)) < 2e-5
    np.testing.assert_allclose(np.sum(np.square(y), -1), np.sum(x**2, -1), rtol=1e-5)


def test_lrpe_depends_on_differences_only():
    layer = perturbed(LRPE(K, rngs=nnx.Rngs(0)))
    q, k = (jnp.asarray(np.random.default_rng(s).normal(size=(B, T, H, K)), "f4") for s in (1, 2))

    def products(places):
        return jnp.einsum("bthk,bshk->bhts", layer(q, places), layer(k, places))

    here = products(jnp.asarray(PLACES))
    assert relative_rms(products(jnp.asarray(PLACES + 30)), here) < 1e-5
    assert relative_rms(products(jnp.asarray(2 * PLACES)), here) > 0.1


def test_lrpe_learns_its_frequencies_only():
    layer = LRPE(K, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        value(layer.frequencies), 10_000.0 ** (-2 * np.arange(K // 2) / K), rtol=1e-6
    )
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, H, K)), "f4")
    gradient = nnx.grad(lambda m: jnp.sum(m(x, jnp.asarray(PLACES)) ** 3))(layer)
    assert np.all(value(gradient.reflection) == 0)
    assert np.any(value(gradient.frequencies) != 0)
    other = LRPE(K, rngs=nnx.Rngs(1))
    assert not np.allclose(value(other.reflection), value(layer.reflection))


@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_gated_feed_forward(activation):
    """l3(act(l1 x) * l2 x), with Swish as in the paper or without as released."""
    layer = FeedForward(
        D,
        8 * D // 3,
        gated=True,
        activation=activation,
        dropout=0.0,
        output_scale=1.0,
        dtype=jnp.dtype("float32"),
        rngs=nnx.Rngs(0),
    )
    layer = perturbed(layer)
    gate = dense(layer.up, X)
    if activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    expected = dense(layer.down, gate * dense(layer.gate, X))
    assert expected.shape == X.shape
    assert relative_rms(layer(jnp.asarray(X, jnp.float32)), expected) < 1e-6


# --- Directions ----------------------------------------------------------------------------------

# Each with what it sees of token 9 of 17, without segments.
LOOKING = [
    ("linear", {"direction": "bidirectional"}, range(T)),
    ("linear", {"direction": "anticausal"}, range(9, T)),
    ("linear", {"direction": "bidirectional", "lrpe": True}, range(T)),
    ("norm", {"direction": "bidirectional"}, range(T)),
    ("norm", {"direction": "anticausal"}, range(9, T)),
    ("softmax", {"direction": "bidirectional"}, range(T)),
    ("diag", {"direction": "bidirectional", "scores": "softmax", "block_size": W}, range(6, 12)),
]
LOOKING_IDS = [f"{name} {' '.join(map(str, options.values()))}" for name, options, _ in LOOKING]


@pytest.mark.parametrize(("name", "options", "seen"), LOOKING, ids=LOOKING_IDS)
def test_what_a_token_sees(name, options, seen):
    """By the gradient: exactly these tokens, and of them those of the same segment."""
    graphdef, parameters = nnx.split(make(name, **options))

    def output(x, ids):
        return jnp.sum(apply(graphdef, parameters, x, ids)[:, 9] ** 2)

    gradient = jax.jit(jax.grad(output), compiler_options=QUICK)
    for ids in (np.zeros_like(IDS), IDS):
        found = np.asarray(gradient(np.asarray(X, np.float32), ids))
        for row in range(B):
            expected = [t for t in seen if ids[row, t] == ids[row, 9]]
            assert np.flatnonzero(np.any(found[row] != 0, -1)).tolist() == expected


@pytest.mark.parametrize("name", ["linear", "norm", "softmax", "diag", "parallel"])
def test_padding_changes_nothing(name):
    """Rows of segment 1, padded with segment 0: the sequence reads as if it were alone."""
    options = {"direction": "bidirectional"}
    if name == "parallel":
        options = {"branches": {"diag": options, "norm": options}}
    mixer = make.__wrapped__(name, **options)  # branches can't be cached
    padded = call(mixer, (PLACES < 11).astype(np.int32))
    alone = call(mixer, time=11)
    assert relative_rms(padded[:, :11], alone) < TOLERANCE


@pytest.mark.parametrize(("name", "options", "seen"), LOOKING, ids=LOOKING_IDS)
def test_only_a_causal_mixer_has_a_state(name, options, seen):
    del seen
    mixer = make(name, **options)
    with pytest.raises(ValueError, match=f"direction is '{options['direction']}'"):
        mixer.init_state(B)
    causal = make(name, **options | {"direction": "causal"})
    with pytest.raises(ValueError, match=f"direction is '{options['direction']}'"):
        mixer(jnp.asarray(X, jnp.float32), causal.init_state(B), positions=jnp.asarray(PLACES))


def test_parallel_is_the_sum():
    options = {"diag": {"block_size": W, "scores": "softmax"}, "norm": {"chunk_size": 4}}
    mixer = MIXERS["parallel"](D, H, branches=options, rngs=nnx.Rngs(0))
    expected = sum(call(branch, IDS) for branch in mixer.branches)
    assert relative_rms(call(mixer, IDS), expected) < 1e-6
    assert mixer.init_state(B).keys() == options.keys()
    assert mixer.flops_per_token(9) == sum(b.flops_per_token(9) for b in mixer.branches)
    assert mixer.capacity is None
    cached = {"norm": {}, "softmax": {"cache_capacity": 7}}
    assert MIXERS["parallel"](D, H, branches=cached, rngs=nnx.Rngs(0)).capacity == 7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("diag", {"block_size": 0}, "block_size is 0"),
        ("diag", {"scores": "tanh"}, "scores is 'tanh'; choose one of softmax, relu"),
        ("diag", {"direction": "anticausal"}, "direction is 'anticausal'; choose one of causal"),
        ("diag", {"output_norm": "batchnorm"}, "norm is 'batchnorm'"),
        ("norm", {"rotary": True}, "rotary and lrpe are both on"),
        ("norm", {"key_width": 3}, "lrpe needs an even key width, not 3"),
        ("norm", {"output_norm": "batchnorm"}, "norm is 'batchnorm'"),
        ("linear", {"direction": "both"}, "direction is 'both'"),
        ("linear", {"direction": "anticausal", "convolution": 4}, "convolution is causal"),
        ("softmax", {"direction": "anticausal"}, "direction is 'anticausal'"),
        ("softmax", {"direction": "bidirectional", "window": 4}, "window is causal"),
        ("parallel", {"branches": {}}, "branches is empty"),
        ("parallel", {"branches": {"conv": {}}}, "conv: no such key"),
        ("parallel", {"branches": {"diag": {"rngs": 1}}}, r"diag\.rngs: no such key"),
        ("parallel", {"branches": {"diag": {"window": 1}}}, r"diag\.window: no such key"),
    ],
)
def test_misuse_names_the_argument(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](D, H, rngs=nnx.Rngs(0), **options)
