"""Product-key memory against all pairs of sub-keys, and in a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.layers.linear import flops_of_weights
from linear_transformer.nn.layers.product_key_memory import ProductKeyMemory
from linear_transformer.nn.rngs import ParameterRngs
from tests.models.language_model_test import assert_cached_is_full, make
from tests.ops.contract import relative_rms

B, T, D, H, N, K = 2, 5, 12, 3, 7, 4
X = np.random.default_rng(1).normal(size=(B, T, D))
SIZES = {"vocab_size": 17, "width": 16, "num_heads": 2, "num_layers": 4}
MEMORY = {"memory_keys": 5, "memory_top": 3, "memory_heads": 2}


def memory(**changes):
    """Every parameter, and the moments of the norm, away from their initial values."""
    options = {"keys": N, "top": K, "heads": H, "output_scale": 1.0, "dtype": jnp.dtype("float32")}
    layer = ProductKeyMemory(D, **options | changes, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape), x.dtype), state)
    layer = nnx.merge(graphdef, state)
    moments = jnp.stack([jnp.full(D, 2.0), jnp.ones(D), jnp.full(D, 3.0)])
    layer.norm.moments[...] = moments.astype("float32")
    return layer


def direct(parameters, x, module, mean, variance):
    """Scores of all N^2 keys, in the arrays of `module`, NumPy or jax.numpy."""
    q = x @ parameters["query"]["kernel"]
    q = (q - mean(q)) / module.sqrt(variance(q) + 1e-5)
    q = q * parameters["norm"]["scale"] + parameters["norm"]["bias"]
    halves = q.reshape(B, T, H, 2, 1, D // H // 2)
    first, second = parameters["sub_keys"]
    keys = module.concatenate([module.repeat(first, N, 1), module.tile(second, (1, N, 1))], -1)
    scores = module.einsum("bthk,hsk->bths", halves.reshape(B, T, H, -1), keys)
    least = module.sort(scores, -1)[..., -K : -K + 1]
    weights = module.where(scores >= least, module.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights = weights / weights.sum(-1, keepdims=True)
    return module.einsum("bths,sd->btd", weights, parameters["values"])


def pure(layer):
    return nnx.to_pure_dict(nnx.state(layer, nnx.Param))


@pytest.mark.parametrize("training", [False, True])
def test_all_pairs_of_sub_keys(training):
    layer = memory()
    parameters = jax.tree.map(lambda p: np.asarray(p, np.float64), pure(layer))
    if training:
        moments = {"mean": lambda q: q.mean((0, 1)), "variance": lambda q: q.var((0, 1))}
    else:
        moments = {"mean": lambda q: 0.5, "variance": lambda q: 1.5 - 0.25}
    y = layer(jnp.asarray(X, jnp.float32), jax.random.key(0) if training else None)
    assert relative_rms(y, direct(parameters, X, np, **moments)) < 3e-6


def test_gradients():
    """Also of values that several heads and tokens read, and of values that none reads."""
    layer = memory(top=K)
    graphdef, parameters, statistics = nnx.split(layer, nnx.Param, ...)
    x = jnp.asarray(X, jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(B, T, D)), jnp.float32)

    def loss(parameters, x):
        return jnp.sum(weights * nnx.merge(graphdef, parameters, statistics)(x))

    def expected(parameters, x):
        y = direct(parameters, x, jnp, mean=lambda q: 0.5, variance=lambda q: 1.25)
        return jnp.sum(weights * y)

    of_parameters, of_x = jax.jit(jax.grad(loss, (0, 1)))(parameters, x)
    actual = nnx.to_pure_dict(of_parameters), of_x
    expected = jax.jit(jax.grad(expected, (0, 1)))(pure(layer), x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected
    )
    read = np.any(np.asarray(actual[0]["values"]) != 0, axis=-1)
    assert 0 < read.sum() < min(N**2, B * T * H * K)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        layer = memory(dtype=jnp.dtype(dtype))
        x = jnp.asarray(X, dtype)
        assert jax.eval_shape(layer, x).dtype == dtype
        assert jax.eval_shape(jax.grad(lambda x: layer(x).sum()), x).dtype == dtype


def test_flops():
    """Queries, 2 N scores of half queries for each head, and k values for each head."""
    layer = memory()
    assert flops_of_weights(layer) == 2 * (D * D + D * N)
    assert layer.flops_beyond_weights == 2 * H * K * D


def model(**changes):
    config = LanguageModelConfig(**SIZES | MEMORY | changes)
    return LanguageModel(config, rngs=ParameterRngs(0))


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        pytest.param((0, 1, 2, 3), ("linear",), marks=pytest.mark.slow),
        ((1, 3), ("linear", "softmax")),
    ],
)
def test_scanned_layers_are_a_loop(layers, pattern):
    """Memories of all layers, or of one layer of a pattern of two: outputs and statistics."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(17, size=(2, 6)))
    options = {"memory_layers": layers, "pattern": pattern}
    scanned, looped = (model(**options, scan_layers=scan) for scan in (None, False))
    assert scanned.stack.scan
    expected = looped(tokens, dropout_key=jax.random.key(0))[0]
    assert relative_rms(scanned(tokens, dropout_key=jax.random.key(0))[0], expected) < 1e-5
    last = looped.stack.blocks[3].feed_forward.norm.moments[...]
    of_scan = scanned.stack.blocks[-1].feed_forward.norm.moments[...]
    assert relative_rms(of_scan[-1], last) < 1e-5
    assert last[0, 0] == tokens.size
    assert scanned.flops_per_token(6) == looped.flops_per_token(6)


def test_layers_of_a_model():
    """A layer that breaks the repetition of the pattern turns the scan off."""
    one = model(memory_layers=(2,), scan_layers=None)
    assert not one.stack.scan
    found = [isinstance(block.feed_forward, ProductKeyMemory) for block in one.stack.blocks]
    assert found == [False, False, True, False]
    without = model()
    feed_forward, read = without.stack.blocks[0].feed_forward, one.stack.blocks[2].feed_forward
    assert one.flops_per_token(8) - without.flops_per_token(8) == (
        flops_of_weights(read) + 2 * 2 * 3 * 16 - flops_of_weights(feed_forward)
    )


def test_cached_is_full():
    assert_cached_is_full(make(memory_layers=(0, 1), **MEMORY, scan_layers=True), 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_layers": (4,)}, r"memory_layers is \(4,\); each must be less than .* \(4\)"),
        ({"memory_layers": (1,), "scan_layers": True}, r"is \(1,\); scan_layers needs the same"),
        ({"memory_layers": (1,), "share_layers": True}, "must be empty with .*share_layers"),
        ({"memory_layers": (-1,)}, "memory_layers is"),
        ({"memory_keys": 0}, "memory_keys is 0"),
        ({"memory_layers": (0,), "memory_top": 6}, r"memory_top is 6; .* at most keys \(5\)"),
        ({"memory_layers": (0,), "memory_heads": 3}, "memory_heads is 3; twice this number"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError, match=message):
        model(**changes)
