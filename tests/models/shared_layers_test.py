"""Shared layers and factorised embeddings of ALBERT, against the model without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from tests.models.language_model_test import (
    QUICK,
    TOLERANCE,
    assert_cached_is_full,
    compiled,
    flat_of,
    make,
    text,
)
from tests.ops.contract import assert_agree

SHARED = {"pattern": ("linear", "softmax"), "num_layers": 6, "share_layers": True}


def test_repetitions_are_one_layer_after_the_other():
    """The same parameters as three copies of them in a model that shares nothing."""
    graphdef, parameters = make(**SHARED)
    apart = LanguageModelConfig(
        **SHARED | {"share_layers": False, "scan_layers": False},
        vocab_size=17,
        width=16,
        num_heads=2,
        feed_forward_width=24,
        mixers={"linear": {"chunk_size": 4}, "softmax": {"cache_capacity": 20}},
    )
    model = LanguageModel(apart, rngs=nnx.Rngs(0))
    shared = flat_of(parameters)

    def source(path):
        if path[:2] != ("stack", "blocks"):
            return shared[path]
        return shared[*path[:2], path[2] % 2, *path[3:]]

    flat = nnx.to_flat_state(nnx.state(model))
    copies = nnx.from_flat_state([(path, x.replace(source(path))) for path, x in flat])
    tokens = text(11)
    expected, _ = compiled(nnx.graphdef(model))(copies, tokens)
    actual, _ = compiled(graphdef)(parameters, tokens)
    assert_agree({"logits": actual}, {"logits": expected}, TOLERANCE)

    def gradients_of(graphdef, parameters):
        def loss(parameters):
            return nnx.merge(graphdef, parameters)(jnp.asarray(tokens))[0].std()

        return flat_of(jax.jit(jax.grad(loss), compiler_options=QUICK)(parameters))

    gradients = gradients_of(graphdef, parameters)
    apart_gradients = gradients_of(nnx.graphdef(model), copies)
    sums = dict.fromkeys(gradients, 0.0)
    for path, x in apart_gradients.items():
        own = path if path[:2] != ("stack", "blocks") else (*path[:2], path[2] % 2, *path[3:])
        sums[own] += x
    assert_agree(gradients, sums, 1e-4)


def test_cached_is_full():
    assert_cached_is_full(make(**SHARED, embedding_width=6), 9)


def test_parameters_and_flops():
    """Six layers have the parameters of two and the FLOPs of six."""
    sizes = {"vocab_size": 17, "width": 16, "num_heads": 2, "feed_forward_width": 24}

    def model(**options):
        config = LanguageModelConfig(**sizes | options)
        return nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))

    shared, two = model(**SHARED), model(**SHARED | {"num_layers": 2, "share_layers": False})
    six = model(**SHARED | {"share_layers": False})
    assert shared.num_parameters == two.num_parameters
    assert shared.flops_per_token(32) == six.flops_per_token(32)
    plain, factorised = model(num_layers=1), model(num_layers=1, embedding_width=4)
    tables = 17 * 4 + (4 * 16 + 16) + (16 * 4 + 4)
    assert factorised.num_parameters - plain.num_parameters == tables - 17 * 16
    products = 2 * (17 * 4 + 4 * 16 + 16 * 4) - 2 * 17 * 16
    assert factorised.flops_per_token(32) - plain.flops_per_token(32) == products
    untied = model(num_layers=1, embedding_width=4, tied=False)
    assert untied.to_table is None


def test_the_scale_of_logits_at_the_start():
    """A factorised table keeps the scale that a whole table has."""
    graphdef, parameters = nnx.split(
        LanguageModel(
            LanguageModelConfig(
                vocab_size=17, width=64, num_layers=1, num_heads=2, embedding_width=16
            ),
            rngs=nnx.Rngs(0),
        )
    )
    logits, _ = compiled(graphdef)(parameters, text(16))
    assert 0.05 < float(np.std(logits)) < 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 5}, "num_layers \\(5\\) is not a multiple .* which share_layers needs"),
        ({"norm": "batchnorm"}, "config.model.norm is 'batchnorm'"),
        ({"embedding_width": 0}, "config.model.embedding_width"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(ConfigError, match=message):
        LanguageModelConfig(**{"vocab_size": 17, "width": 16, "num_heads": 2, **SHARED, **changes})
