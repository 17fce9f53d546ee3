"""The classifier: padding changes nothing, pooling reads what it says, both norms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.compile import compiled_program
from linear_transformer.errors import ConfigError
from linear_transformer.models.classifier import POOLINGS, Classifier, ClassifierConfig
from tests.layers import slow_except
from tests.ops.contract import relative_rms

B, T, VOCABULARY, CLASSES = 3, 9, 11, 4
BOTH_WAYS = {
    "linear": {"direction": "bidirectional"},
    "softmax": {"direction": "bidirectional"},
    "diag": {"direction": "bidirectional", "block_size": 4, "scores": "softmax"},
    "norm": {"direction": "bidirectional"},
}
SIZES = {
    "vocab_size": VOCABULARY,
    "num_classes": CLASSES,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_width": 24,
    "mixers": BOTH_WAYS,
}
QUICK = {"xla_backend_optimization_level": 0}


def make(**changes):
    return Classifier(ClassifierConfig(**SIZES | changes), rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def apply(graphdef, parameters, tokens, mask, key):
    return nnx.merge(graphdef, parameters)(tokens, mask_BT=mask, dropout_key=key)


def call(model, tokens, mask=None, key=None):
    return np.asarray(apply(*nnx.split(model), tokens, mask, key))


def text(time=T, seed=0):
    return np.random.default_rng(seed).integers(VOCABULARY, size=(B, time), dtype=np.int32)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_flops_per_token(scan_layers):
    """The formula against the compiled program's matmuls."""
    mixers = {"softmax": {"direction": "bidirectional", "form": "parallel"}}
    model = make(pattern=("softmax",), mixers=mixers, pooling="last", scan_layers=scan_layers)
    program = jax.jit(model, compiler_options=QUICK).lower(jnp.asarray(text(64))).compile()
    counted = compiled_program.cost(program.as_text()).flops / (B * 64)
    head = 2 * SIZES["width"] * CLASSES / 64
    assert counted == pytest.approx(model.flops_per_token(64) + head, rel=1e-3)


PADDED = {
    "linear": {"pattern": ("linear",), "norm_position": "pre"},
    "softmax": {"pattern": ("softmax",), "norm_position": "post", "embedding_norm": "layernorm"},
    "transnormer": {
        "pattern": ("diag", "norm"),
        "norm_position": "post",
        "norm": "simplermsnorm",
    },
    "batchnorm": {"pattern": ("softmax",), "norm": "batchnorm"},
}


@pytest.mark.parametrize(
    ("name", "pooling"),
    # Every model, and every pooling of one of them.
    slow_except(
        [*((n, "mean") for n in PADDED), *(("linear", p) for p in POOLINGS)],
        itertools.product(PADDED, POOLINGS),
    ),
)
def test_padding_changes_nothing(name, pooling):
    """Rows of 5, 9 and 1 tokens in one batch are classified as each alone."""
    model = make(pooling=pooling, positions="learned", **PADDED[name])
    lengths = np.array([5, 9, 1])
    tokens, mask = text(), np.arange(T) < lengths[:, None]
    logits = call(model, tokens, mask)
    assert logits.shape == (B, CLASSES)
    assert logits.dtype == np.float32
    other = np.where(mask, tokens, (tokens + 1) % VOCABULARY)
    np.testing.assert_allclose(call(model, other, mask), logits, rtol=1e-5, atol=1e-6)
    for row, length in enumerate(lengths):
        alone = call(model, tokens[row : row + 1, :length])
        assert relative_rms(logits[row : row + 1], alone) < 1e-5


def test_pooling_reads_what_it_says():
    """With one causal layer: the last token sees all, a first one would see itself alone."""
    model = make(pooling="last", mixers={}, num_layers=1)
    tokens = text()
    changed = tokens.copy()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    assert relative_rms(call(model, changed), call(model, tokens)) > 1e-3
    mean, last = (make(pooling=p, mixers={}) for p in ("mean", "last"))
    assert relative_rms(call(mean, tokens), call(last, tokens)) > 1e-2
    assert relative_rms(call(mean, tokens[:, :1]), call(last, tokens[:, :1])) < 1e-6
    cls = make(pooling="cls")
    assert relative_rms(call(cls, changed), call(cls, tokens)) > 1e-3
    assert cls.num_parameters == make().num_parameters + 16


def test_norm_positions():
    pre, post = make(norm_position="pre"), make(norm_position="post")
    assert pre.num_parameters == post.num_parameters + 2 * 16
    assert relative_rms(call(pre, text()), call(post, text())) > 1e-2


def test_dropout_needs_a_key():
    model = make(dropout=0.3)
    keyed = [call(model, text(), key=jax.random.key(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(keyed[0], keyed[1])
    assert not np.array_equal(keyed[0], keyed[2])
    assert np.array_equal(call(model, text()), call(make(), text()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, r"config\.model\.num_classes is 1"),
        ({"pooling": "max"}, r"config\.model\.pooling is 'max'; .* auto, mean, last, cls"),
        ({"pooling": "cls", "mixers": {}}, r"config\.model\.mixers\.linear\.direction"),
        ({"width": 0}, r"config\.model\.width is 0"),
    ],
)
def test_mistakes_name_the_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        ClassifierConfig(**SIZES | changes)
