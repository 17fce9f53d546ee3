"""Qin et al. 2022: the published parameter counts, and every variant as a model that runs."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs.papers.qin2022 import ablations, wikitext103_ar, wikitext103_bidirectional
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.parameters import declarations
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.training.optimizers import OptimizerConfig, make_optimizer

VOCABULARY = 267_744  # of the paper's preprocessing


def model_of(config, vocab_size, **changes):
    config.model.update(changes)
    model_config = configuration.build(
        LanguageModelConfig, config.model, "model", vocab_size=vocab_size
    )
    return nnx.eval_shape(lambda: LanguageModel(model_config, rngs=ParameterRngs(0)))


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("t1", 155.99), ("t2", 155.99), ("vanilla", 156.00), ("one_plus_elu", 156.00)],
)
def test_parameters_of_table_4(variant, millions):
    model = model_of(wikitext103_ar.get_config(variant), VOCABULARY)
    assert round(model.num_parameters / 1e6, 2) == millions


def test_parameters_of_a_layer():
    """Exactly: 4 projections, a gated feed-forward of 1365, and LRPE's 64 + 32 a layer."""
    D, F, K = 512, 1365, 64
    layer = 4 * (D * D + D) + 2 * (D * F + F) + F * D + D + K + K // 2
    model = model_of(wikitext103_ar.get_config("t1"), VOCABULARY)
    assert model.num_parameters == VOCABULARY * D + 6 * layer


def test_layers_of_table_4():
    for kind, scores, feature_map in (("t1", "relu", "elu"), ("t2", "softmax", "elu_plus_one")):
        model = model_of(wikitext103_ar.get_config(kind), 100)
        mixers = [block.mixer for block in model.stack.blocks]
        assert [type(m).__name__ for m in mixers] == ["DiagAttention"] * 3 + ["LinearAttention"] * 3
        assert {m.scores for m in mixers[:3]} == {scores}
        assert {m.block_size for m in mixers[:3]} == {64}
        assert all((m.output_norm is not None) == (kind == "t1") for m in mixers[:3])
        assert {(m.feature_map, m.normalize) for m in mixers[3:]} == {(feature_map, False)}
        assert all(m.output_norm is not None for m in mixers[3:])
        assert all(m.lrpe is not None for m in mixers)


def all_configs():
    for variant in wikitext103_ar.VARIANTS:
        yield f"ar:{variant}", wikitext103_ar.get_config, variant
    for module, name in ((wikitext103_bidirectional, "bidirectional"), (ablations, "ablations")):
        variants = getattr(module, "VARIANTS", wikitext103_ar.VARIANTS)
        for variant in variants:
            for size in ("", ",small"):
                yield f"{name}:{variant}{size}", module.get_config, variant + size


CASES = list(all_configs())
# One of each file.
QUICK = ("ar:t2", "bidirectional:t1", "ablations:split_6_6")


@pytest.mark.parametrize(
    ("get_config", "variant"),
    [
        pytest.param(*c, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, *c in CASES
    ],
)
def test_every_variant_is_a_model(get_config, variant):
    """Shapes only, at the published width, and an optimizer."""
    config = get_config(variant)
    model = model_of(config, 100)
    assert model.flops_per_token(512) > 0
    graphdef, parameters = nnx.split(model)
    tokens = jnp.zeros((1, 130), jnp.int32)
    logits = jax.eval_shape(lambda p, t: nnx.merge(graphdef, p)(t)[0], parameters, tokens)
    assert logits.shape == (1, 130, 100)
    optimizer = configuration.build(OptimizerConfig, config.optimizer, "optimizer")
    make_optimizer(optimizer, config.num_steps, declarations(model))


def test_ablations_change_what_they_say():
    @functools.cache
    def blocks(variant):
        return model_of(ablations.get_config(variant), 100, scan_layers=False).stack.blocks

    names = {
        "split_6_6": ["Diag"] * 6 + ["Linear"] * 6,
        "split_0_12": ["Linear"] * 12,
        "split_12_0": ["Diag"] * 12,
        "norm_first": ["Linear"] * 6 + ["Diag"] * 6,
        "alternating": ["Diag", "Linear"] * 6,
        "parallel": ["Parallel"] * 12,
        "linear_softmax": ["Linear"] * 6 + ["Softmax"] * 6,
        "softmax_linear": ["Softmax"] * 6 + ["Linear"] * 6,
    }
    for variant, expected in names.items():
        mixers = [type(b.mixer).__name__.removesuffix("Attention") for b in blocks(variant)]
        assert mixers == expected, variant
    for size in (32, 128):
        assert blocks(f"block_{size}")[0].mixer.block_size == size
    assert blocks("ffn")[0].feed_forward.gate is None
    assert blocks("split_6_6")[0].feed_forward.gate is not None
    assert not blocks("one_plus_elu_unscaled")[0].mixer.normalize
    both = blocks("parallel")[0].mixer.branches
    assert {branch.direction for branch in both} == {"bidirectional"}


def test_unknown_variants_are_named():
    for module in (wikitext103_ar, wikitext103_bidirectional, ablations):
        with pytest.raises(ConfigError, match="t3: the variants are"):
            module.get_config("t3")
    with pytest.raises(ConfigError, match="t2,tiny: the variants are"):
        wikitext103_bidirectional.get_config("t2,tiny")
