"""Mixers of kernel attention against their papers' equations.

That cached calls equal full ones is tested for every mixer in mixers_test.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.nn.layers.efficient_attention_2d import EfficientAttention2D, NonLocal2D
from linear_transformer.nn.mixers.registry import MIXERS
from linear_transformer.ops.random_features import draw_projections
from tests.ops.contract import relative_rms

B, T, D, H, K = 2, 20, 8, 2, 4
M = 12  # random projections per head
IDS = np.array([[1] * 7 + [2] * 13, [4] * T], np.int32)
POSITIONS = np.array([np.r_[:7, :13], np.r_[:T]], np.int32)


def make(name, dtype=jnp.float64, **options):
    """A mixer with all parameters, biases too, away from their initial values."""
    graphdef, parameters = nnx.split(
        MIXERS[name](D, H, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype), **options)
    )
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda p: jnp.asarray(p + 0.3 * rng.normal(size=p.shape), dtype), parameters
    )
    return nnx.merge(graphdef, moved)


def dense(layer, x):
    y = x @ np.asarray(layer.kernel[...])
    return y if layer.bias is None else y + np.asarray(layer.bias[...])


def softmax(x, axis):
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def projections(mixer):
    return draw_projections(H, M, K, seed=mixer.seed, orthogonal=mixer.orthogonal)


def efficient(mixer, x, q, k, v, b, i, h, seen):
    contexts = softmax(k[b, seen, h], axis=0).T @ v[b, seen, h]
    return softmax(q[b, i, h], axis=0) @ contexts


def performer(mixer, x, q, k, v, b, i, h, seen):
    """phi(x) = exp(W x' - |x'|^2 / 2) / sqrt(M), x' = x / d^(1/4)."""
    w = projections(mixer)[h]

    def phi(x):
        x = x / K**0.25
        if mixer.kernel == "relu":
            return np.maximum(x @ w.T, 0) + 1e-3
        return np.exp(x @ w.T - np.sum(x**2, axis=-1, keepdims=True) / 2) / np.sqrt(M)

    weights = phi(k[b, seen, h]) @ phi(q[b, i, h])
    return weights @ v[b, seen, h] / weights.sum()


def cosformer(mixer, x, q, k, v, b, i, h, seen):
    """Equation 10: relu(q) . relu(k) cos(pi (i - j) / 2M), normalised."""
    distance = POSITIONS[b, i] - POSITIONS[b, seen]
    weights = np.maximum(k[b, seen, h], 0) @ np.maximum(q[b, i, h], 0)
    weights = weights * np.cos(np.pi * distance / (2 * mixer.max_length))
    return weights @ v[b, seen, h] / max(weights.sum(), mixer.epsilon)


def rfa(mixer, x, q, k, v, b, i, h, seen):
    """Equations 4-5, and with the gate S_t = g S_{t-1} + (1 - g) phi(k) v^T token by token."""
    sigma = mixer.scale if mixer.sigma_HK is None else np.asarray(mixer.sigma_HK[...])[h]
    w = projections(mixer)[h] * sigma

    def phi(x):
        angles = w @ (x / np.linalg.norm(x))
        return np.concatenate([np.sin(angles), np.cos(angles)]) / np.sqrt(M)

    s, z = np.zeros((2 * M, D // H)), np.zeros(2 * M)
    for j in np.flatnonzero(seen):
        g, write = 1.0, 1.0
        if mixer.gate is not None:
            g = 1 / (1 + np.exp(-dense(mixer.gate, x[b, j])[h]))
            write = 1 - g
        s = g * s + write * np.outer(phi(k[b, j, h]), v[b, j, h])
        z = g * z + write * phi(k[b, j, h])
    return s.T @ phi(q[b, i, h]) / max(z @ phi(q[b, i, h]), mixer.epsilon)


def averaged(mixer, weights, values):
    return weights @ values / (weights.sum() + mixer.epsilon)


def based(mixer, x, q, k, v, b, i, h, seen):
    """Section 4.1: 1 + s + s^2 / 2 for s = q . k / sqrt(d)."""
    s = k[b, seen, h] @ q[b, i, h] / np.sqrt(mixer.key_width)
    return averaged(mixer, 1 + s + s**2 / 2, v[b, seen, h])


def rebased(mixer, x, q, k, v, b, i, h, seen):
    """Section 4: (q' . k')^2 / d for q', k' = gamma * norm(x) + beta."""

    def normed(x, layer):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + layer.epsilon)
        return x * np.asarray(layer.scale[...])[h] + np.asarray(layer.bias[...])[h]

    s = normed(k[b, seen, h], mixer.key_map) @ normed(q[b, i, h], mixer.query_map)
    return averaged(mixer, s**2 / mixer.key_width, v[b, seen, h])


def hedgehog(mixer, x, q, k, v, b, i, h, seen):
    """softmax([W x, -W x]) over the features of a head."""

    def phi(x, layer):
        x = x @ np.asarray(layer.kernel[...])[h]
        return softmax(np.concatenate([x, -x], -1), axis=-1)

    weights = phi(k[b, seen, h], mixer.key_map) @ phi(q[b, i, h], mixer.query_map)
    return averaged(mixer, weights, v[b, seen, h])


def t2r(mixer, x, q, k, v, b, i, h, seen):
    """relu(W x + b) in each head."""

    def phi(x, layer):
        return np.maximum(x @ np.asarray(layer.kernel[...])[h] + np.asarray(layer.bias[...])[h], 0)

    weights = phi(k[b, seen, h], mixer.key_map) @ phi(q[b, i, h], mixer.query_map)
    return averaged(mixer, weights, v[b, seen, h])


def log_linear(mixer, x, q, k, v, b, i, h, seen):
    """Section 3.2: a scale for the highest bit in which two places of a document differ."""
    places, place = POSITIONS[b, seen], POSITIONS[b, i]
    gains = np.asarray(mixer.scale_gain[...])[h]
    scales = np.log1p(np.exp(gains * dense(mixer.scale, x[b, i]).reshape(H, -1)[h]))
    levels = [int(place ^ s).bit_length() for s in places]
    phi_q, phi_k = (np.where(a > 0, a + 1, np.exp(a)) for a in (q[b, i, h], k[b, seen, h]))
    weights = scales[levels] * (phi_k @ phi_q)
    return weights @ v[b, seen, h] / weights.sum()


CASES = [
    ("efficient", {}, efficient),
    ("performer", {"features": M}, performer),
    ("performer", {"features": M, "orthogonal": False, "seed": 3}, performer),
    ("performer", {"features": M, "kernel": "relu"}, performer),
    ("cosformer", {"max_length": 2 * T}, cosformer),
    ("rfa", {"features": M}, rfa),
    ("rfa", {"features": M, "scale": 1.5, "learn_scale": False}, rfa),
    ("based", {}, based),
    ("rebased", {}, rebased),
    ("hedgehog", {}, hedgehog),
    ("t2r", {}, t2r),
    ("t2r", {"features": M}, t2r),
]


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize(("name", "options", "attend"), CASES)
def test_equations(name, options, attend, direction):
    """float64 rounding; only linear attention adds 1e-6 to its denominator."""
    check_equations(name, options | {"direction": direction}, attend)


def test_equations_of_the_gate():
    check_equations("rfa", {"features": M, "gate": True}, rfa)


def test_equations_of_levels():
    check_equations("log_linear", {"max_length": T}, log_linear)


def check_equations(name, options, attend):
    with jax.enable_x64(True):
        mixer = make(name, **options)
        x = np.random.default_rng(1).normal(size=(B, T, D))
        apply = nnx.jit(
            lambda mixer, x: mixer(
                x, segment_ids=jnp.asarray(IDS), positions=jnp.asarray(POSITIONS)
            )
        )
        y, state = apply(mixer, jnp.asarray(x))
        assert state is None
        q, k, v = (
            dense(layer, x).reshape(B, T, H, -1) for layer in (mixer.query, mixer.key, mixer.value)
        )
        o = np.zeros(v.shape)
        for b, i, h in itertools.product(range(B), range(T), range(H)):
            seen = IDS[b] == IDS[b, i]
            if mixer.direction == "causal":
                seen = seen & (np.arange(T) <= i)
            o[b, i, h] = attend(mixer, x, q, k, v, b, i, h, seen)
        expected = dense(mixer.output, o.reshape(B, T, D))
        tolerance = 1e-4 if options.get("kernel") == "relu" else 1e-11
        assert relative_rms(y, expected) < tolerance


def test_efficient_scaling_is_dot_product_attention():
    with jax.enable_x64(True):
        mixer = make("efficient", normalization="scaling", direction="bidirectional")
        x = np.random.default_rng(1).normal(size=(B, T, D))
        q, k, v = (
            dense(layer, x).reshape(B, T, H, -1) for layer in (mixer.query, mixer.key, mixer.value)
        )
        o = np.einsum("bthk,bshk,bshv->bthv", q, k, v) / T
        assert (
            relative_rms(mixer(jnp.asarray(x))[0], dense(mixer.output, o.reshape(B, T, D))) < 1e-12
        )


@pytest.mark.parametrize("name", ["performer", "rfa"])
def test_projections_are_no_parameters(name):
    """A model with the same seed is the same function; another seed takes the same parameters."""
    mixer, again, other = (MIXERS[name](D, H, seed=s, rngs=nnx.Rngs(0)) for s in (0, 0, 1))
    layers = {path[0] for path, _ in nnx.to_flat_state(nnx.state(mixer))}
    assert layers <= {"query", "key", "value", "output", "sigma_HK"}
    assert hash(nnx.graphdef(mixer)) == hash(nnx.graphdef(again))
    assert nnx.graphdef(mixer) == nnx.graphdef(again) != nnx.graphdef(other)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, D)), jnp.float32)
    redrawn = nnx.merge(nnx.graphdef(other), nnx.state(mixer))
    call = nnx.jit(lambda mixer, x: mixer(x)[0])
    assert np.array_equal(call(mixer, x), call(again, x))
    assert relative_rms(call(redrawn, x), call(mixer, x)) > 1e-3


def test_learned_scale_gets_a_gradient():
    mixer = make("rfa", jnp.float32, features=M)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, D)), jnp.float32)
    gradients = nnx.jit(nnx.grad(lambda mixer: jnp.sum(mixer(x)[0] ** 2)))(mixer)
    for leaf in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(leaf))
    assert np.all(gradients["sigma_HK"][...] != 0)


@pytest.mark.parametrize("name", ["efficient", "performer", "cosformer", "rfa"])
def test_bidirectional_sees_all_and_has_no_state(name):
    mixer = MIXERS[name](D, H, direction="bidirectional", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, D)), jnp.float32)
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(mixer(x, positions=jnp.asarray(POSITIONS))[0][:, 3] ** 2))
    )(x)
    assert np.all(np.any(np.asarray(gradient) != 0, axis=-1))
    with pytest.raises(ValueError, match="direction is 'bidirectional'"):
        mixer.init_state(B)
    with pytest.raises(ValueError, match="direction is 'bidirectional'"):
        mixer(
            x, MIXERS[name](D, H, rngs=nnx.Rngs(0)).init_state(B), positions=jnp.asarray(POSITIONS)
        )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("efficient", {"normalization": "l2"}, "normalization is 'l2'"),
        ("efficient", {"normalization": "scaling"}, "needs direction='bidirectional'"),
        ("efficient", {"direction": "sideways"}, "direction is 'sideways'"),
        ("efficient", {"form": "fast"}, "form is 'fast'"),
        ("efficient", {"chunk_size": 0}, "chunk_size is 0"),
        ("efficient", {"key_width": 0}, "key_width is 0"),
        ("performer", {"kernel": "sigmoid"}, "kernel is 'sigmoid'"),
        ("performer", {"features": 0}, "features is 0"),
        ("cosformer", {"max_length": 0}, "max_length is 0"),
        ("cosformer", {"epsilon": 0.0}, "epsilon is 0"),
        ("rfa", {"features": 0}, "features is 0"),
        ("t2r", {"features": 0}, "features is 0"),
        ("rfa", {"scale": 0.0}, "scale is 0"),
        ("rfa", {"gate": True, "direction": "bidirectional"}, "gate is True"),
    ],
)
def test_misuse_names_the_argument(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](D, H, rngs=nnx.Rngs(0), **options)


def test_cosformer_needs_positions_and_has_a_capacity():
    mixer = MIXERS["cosformer"](D, H, max_length=77, rngs=nnx.Rngs(0))
    assert mixer.capacity == 77
    with pytest.raises(ValueError, match="positions is None"):
        mixer(jnp.zeros((B, T, D)))


def test_scaling_takes_no_segments():
    mixer = MIXERS["efficient"](
        D, H, normalization="scaling", direction="bidirectional", rngs=nnx.Rngs(0)
    )
    with pytest.raises(ValueError, match="takes no segment_ids"):
        mixer(jnp.zeros((B, T, D)), segment_ids=jnp.asarray(IDS))


def images(heads, normalization, module):
    with jax.enable_x64(True):
        options = {
            "key_channels": 4,
            "value_channels": 6,
            "heads": heads,
            "dtype": jnp.dtype("float64"),
        }
        layer = module(8, normalization=normalization, rngs=nnx.Rngs(0), **options)
        x = np.random.default_rng(0).normal(size=(2, 5, 3, 8))
        return layer, x, np.asarray(jax.jit(lambda x: layer(x))(x))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("normalization", ["softmax", "scaling"])
@pytest.mark.parametrize("module", [EfficientAttention2D, NonLocal2D])
def test_images(module, normalization, heads):
    """Pixels as tokens, heads of 1 x 1 projections, a reprojection, the input added."""
    layer, x, y = images(heads, normalization, module)
    pixels = x.reshape(2, 15, 8)
    q, k, v = (
        dense(projection, pixels).astype(np.float64).reshape(2, 15, heads, -1)
        for projection in (layer.query, layer.key, layer.value)
    )
    if normalization == "scaling":
        o = np.einsum("bthk,bshk,bshv->bthv", q, k, v) / 15
    elif module is NonLocal2D:
        weights = softmax(np.einsum("bthk,bshk->bhts", q, k), axis=-1)
        o = np.einsum("bhts,bshv->bthv", weights, v)
    else:
        o = np.einsum("bthk,bshk,bshv->bthv", softmax(q, -1), softmax(k, 1), v)
    expected = x + dense(layer.reprojection, o.reshape(2, 15, 6)).reshape(x.shape)
    assert relative_rms(y, expected) < 1e-6  # parameters are fp32


def test_image_misuse():
    for options, message in (
        ({"heads": 3}, "key_channels is 4, not a multiple of heads"),
        ({"value_channels": 0}, "value_channels is 0"),
        ({"normalization": "l2"}, "normalization is 'l2'"),
    ):
        with pytest.raises(ValueError, match=message):
            EfficientAttention2D(8, rngs=nnx.Rngs(0), **options)
