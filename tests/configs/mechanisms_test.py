"""Every name of the table is a language model, of about the size of the others."""

import functools

import jax
import pytest
from flax import nnx

from configs import default, mechanisms
from configs.scorecard.task import TASKS
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.mixers.registry import MIXERS
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.reports.tables import Experiment
from linear_transformer.training import experiment

BOUNDED = [name for name, m in MIXERS.items() if m.causal and m.length_option and m.limits_length]
# Configs of any mechanism, with what stands before its name.
FILES = (
    *("default.py:", "lm/enwik8.py:", "lm/shakespeare.py:", "lm/text8.py:", "lm/wikitext103.py:"),
    *("papers/nanogpt2022/shakespeare_char.py:", "papers/yang2024/memorization.py:"),
    *(f"recall/{n}.py:" for n in ("induction_heads", "modular_arithmetic", "mqar", "needle")),
    *(f"recall/{n}.py:" for n in ("parity", "selective_copying")),
    *(f"scorecard/task.py:{task}," for task in TASKS),
    "recall/mad.py:in_context_recall,",
)


@functools.cache
def model_of(name):
    config = configuration.build(
        LanguageModelConfig, default.get_config(name).model, "model", vocab_size=257
    )
    return nnx.eval_shape(lambda: LanguageModel(config, rngs=ParameterRngs(0)))


@pytest.mark.parametrize("name", mechanisms.NAMES)
def test_about_the_parameters_of_softmax(name):
    ratio = model_of(name).num_parameters / model_of("softmax").num_parameters
    assert 0.9 < ratio < 1.4


@pytest.mark.parametrize("name", BOUNDED)
def test_the_longest_row_fits_in_every_config(name):
    for file in FILES:
        config = experiment.resolve(Experiment(f"configs/{file}{name}").load())
        longest = max(config.data.sequence_length, *config.data.evaluation_lengths, 0)
        model = configuration.build(LanguageModelConfig, config.model, "model", vocab_size=2)
        model.require_positions(file, longest)


def test_lightning_has_the_layers_of_transnormer_llm():
    """LRPE in the first layer, norms without gain, a gated feed-forward without activation."""
    model = model_of("lightning")
    mixers = [block.mixer for block in model.stack.blocks]
    assert [mixer.lrpe is not None for mixer in mixers] == [True, False, False, False]
    assert {block.feed_forward.activation for block in model.stack.blocks} == {"identity"}
    assert all(block.feed_forward.gate is not None for block in model.stack.blocks)
    gains = [p for p in jax.tree.leaves_with_path(nnx.state(model)) if "norm" in str(p[0]).lower()]
    assert not gains


def test_an_unknown_name_is_one_line():
    with pytest.raises(ConfigError, match="variants are"):
        default.get_config("no_such")
    with pytest.raises(ConfigError, match=r"the nearest are .*retnet"):
        default.get_config("retnett")
