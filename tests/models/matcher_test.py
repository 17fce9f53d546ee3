"""The matcher: one encoder for both sequences, which never see each other, nor any padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.models.classifier import Classifier, ClassifierConfig
from linear_transformer.models.matcher import Matcher
from tests.ops.contract import relative_rms

B, T, D, VOCABULARY, CLASSES = 3, 7, 16, 11, 2
QUICK = {"xla_backend_optimization_level": 0}
LENGTHS = np.array([[5, 7], [1, 3], [7, 2]])
MASK = np.arange(T) < LENGTHS[..., None]


@functools.cache
def make(pooling="mean"):
    config = ClassifierConfig(
        vocab_size=VOCABULARY,
        num_classes=CLASSES,
        width=D,
        num_layers=1,
        num_heads=2,
        feed_forward_width=24,
        mixers={"linear": {"direction": "bidirectional"}},
        pooling=pooling,
    )
    return Matcher(config, rngs=nnx.Rngs(0)), Classifier(config, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def apply(graphdef, parameters, tokens, mask):
    return nnx.merge(graphdef, parameters)(tokens, mask_B2T=mask)


def call(model, tokens, mask=None):
    return np.asarray(apply(*nnx.split(model), tokens, mask))


def pairs():
    return np.random.default_rng(0).integers(VOCABULARY, size=(B, 2, T), dtype=np.int32)


def test_flops_are_those_of_both_sequences():
    model, classifier = make()
    assert model.flops_per_token(T) == 2 * classifier.flops_per_token(T) > 0


def test_features_of_one_encoder():
    """Against the encoder called on each sequence alone, and the features by NumPy."""
    model, classifier = make()
    tokens = pairs()
    encode = jax.jit(lambda t: model.encoder(t), compiler_options=QUICK)
    a, b = (np.asarray(encode(jnp.asarray(tokens[:, i])), np.float64) for i in (0, 1))
    x = np.concatenate([a, b, a * b, a - b], axis=-1)
    for layer, floor in ((model.hidden, 0), (model.head, -np.inf)):
        x = np.maximum(x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]), floor)
    logits = call(model, tokens)
    assert logits.shape == (B, CLASSES)
    assert logits.dtype == np.float32
    assert relative_rms(logits, x) < 1e-5
    extra = 4 * D * D + D  # the hidden layer; the towers have nothing of their own
    assert model.num_parameters == classifier.num_parameters + extra


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_padding_changes_nothing(pooling):
    model, _ = make(pooling)
    tokens = pairs()
    logits = call(model, tokens, MASK)
    other = np.where(MASK, tokens, (tokens + 1) % VOCABULARY)
    np.testing.assert_allclose(call(model, other, MASK), logits, rtol=1e-5, atol=1e-6)
    assert relative_rms(call(model, other), call(model, tokens)) > 1e-2  # the mask is what does it
    longer = [np.pad(x, ((0, 0), (0, 0), (0, 4))) for x in (tokens, MASK)]
    assert relative_rms(call(model, *longer), logits) < 1e-5


def test_order_of_a_pair_counts():
    model, _ = make()
    tokens = pairs()
    assert relative_rms(call(model, tokens[:, ::-1]), call(model, tokens)) > 1e-2
