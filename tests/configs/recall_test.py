"""The recall configs: each builds its task, makes a batch and evaluates; mistakes are one line."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import mechanisms
from configs.papers.arora2023 import mqar as arora2023
from configs.papers.gu2023 import induction_heads as gu2023
from configs.papers.yang2024 import memorization as yang2024
from configs.recall import (
    induction_heads,
    mad,
    modular_arithmetic,
    mqar,
    needle,
    parity,
    selective_copying,
)
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError, UserError
from linear_transformer.models.compressor import Compressor
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.training.build import make_task

CONFIGS = {
    "induction_heads": induction_heads.get_config(),
    "modular_arithmetic": modular_arithmetic.get_config(),
    "mqar": mqar.get_config(),
    "needle": needle.get_config(),
    "parity": parity.get_config("delta_net"),
    "selective_copying": selective_copying.get_config(),
    "arora2023": arora2023.get_config("based"),
    "gu2023": gu2023.get_config(),
    "yang2024": yang2024.get_config(),
    **{f"mad {task}": mad.get_config(task) for task in mad.TASKS},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_task_and_batch(name):
    """One batch of training and a loss, by shape."""
    config = CONFIGS[name]
    task = make_task(config)
    batch = next(iter(task.training_data(0, 1)))
    shape = (config.data.batch_size, config.data.sequence_length)
    assert {array.shape for array in batch.values()} == {shape}
    model = nnx.eval_shape(lambda: task.make_model(ParameterRngs(0)))
    assert model.num_parameters > 10_000
    assert "parameters" in task.describe(model)
    loss = nnx.eval_shape(lambda model, batch: task.loss(model, batch, None), model, batch)
    assert loss.keys() == {"loss", "accuracy", "sequences"}


def test_every_mechanism_is_a_variant():
    for name in mechanisms.NAMES:
        config = mqar.get_config(name)
        model = configuration.build(
            LanguageModelConfig, config.model, "model", vocab_size=256, length=64
        )
        assert set(model.pattern) == set(config.model.mixers)
        assert model.feed_forward_width == 0


def small(config, **data):
    config.data.update(batch_size=4, evaluation_examples=6, **data)
    config.model.update(width=16, num_layers=1)
    task = make_task(config)
    return task, *nnx.split(task.make_model(nnx.Rngs(0)))


def test_evaluates_lengths_and_options():
    config = mqar.get_config("katharopoulos")
    options = {"pairs": ((64, 4), (64, 8), (128, 32))}
    task, graphdef, parameters = small(
        config, evaluation_lengths=(64, 128), evaluation_options=options
    )
    metrics = task.evaluate(graphdef, parameters, "test")
    assert task.metric_names(graphdef, parameters) == list(metrics)
    names = ("64", "128", "length_64_pairs_4", "length_64_pairs_8", "length_128_pairs_32")
    expected = [f"{m}_at_{name}" for name in names for m in ("accuracy", "sequences")]
    assert metrics.keys() == {"loss", "accuracy", "sequences", *expected}
    assert (
        metrics["accuracy"] == metrics["accuracy_at_64"] == metrics["accuracy_at_length_64_pairs_4"]
    )


def test_logits_of_the_answers_alone_give_the_same_loss():
    """The loss, its counts and all gradients are those of the logits of every token."""
    task, graphdef, parameters = small(mqar.get_config("katharopoulos"))
    batch = jax.tree.map(jnp.asarray, next(iter(task.training_data(0, 1))))
    assert task._answers(64) == 16  # of the evaluation with 16 pairs

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(parameters):
        metrics = task.loss(nnx.merge(graphdef, parameters), batch, None)
        return metrics["loss"][0], metrics

    few = loss(parameters)
    task._answers = lambda length: length
    loss.clear_cache()
    chex.assert_trees_all_close(few, loss(parameters), rtol=1e-5, atol=1e-6)
    assert few[0][1]["accuracy"][1] == 4 * 4


def test_work_of_the_answers_alone():
    """The FLOPs have the logits of 16 of 64 tokens, 16 x 256 products each."""
    for tied in (True, False):
        config = mqar.get_config("katharopoulos")
        config.model.tied = tied
        task, graphdef, parameters = small(config)
        model = nnx.merge(graphdef, parameters)
        every = 64 * model.flops_per_token(64)
        assert task.flops_per_example(model) == every - 48 * 2 * 16 * 256
        assert f"{3 * task.flops_per_example(model) // 64:,} per" in task.describe(model)["FLOPs"]


def test_long_evaluations_keep_their_tokens(monkeypatch):
    """Fewer rows in a batch, and fewer examples beyond a number of tokens."""
    task, _, _ = small(induction_heads.get_config("katharopoulos"), sequence_length=8)
    monkeypatch.setattr("linear_transformer.tasks.synthetic._MOST_TOKENS", 64)

    def shapes(length):
        batches = list(task.evaluation_batches("test", length=length))
        examples = sum(int(batch["weights"].sum()) for batch in batches)
        return [batch["inputs"].shape for batch in batches], examples

    assert shapes(4) == ([(4, 4), (4, 4)], 6)
    assert shapes(16) == ([(2, 16), (2, 16)], 4)
    assert shapes(256) == ([(1, 256)], 1)


def test_compression_sees_all_through_one_vector():
    """Every logit depends on every token, but only by the vector of the last."""
    task, graphdef, parameters = small(mad.get_config("compression,katharopoulos"))
    model = nnx.merge(graphdef, parameters)
    assert isinstance(model, Compressor)
    tokens = jnp.asarray(task.generator(np.random.default_rng(0), 32)[0][None])
    logits, _ = model(tokens)
    assert logits.shape == (1, 32, 16)
    changed = tokens.at[0, 0].set((tokens[0, 0] + 1) % 15)
    assert np.abs(model(changed)[0] - logits).max(-1).min() > 1e-6
    model.encoder = lambda tokens, mask_BT, dropout_key: jnp.ones((1, 16))
    np.testing.assert_array_equal(model(tokens)[0], model(changed)[0])


@pytest.mark.slow
def test_compression_learns():
    """Two symbols by chance are 1 in 15 each, and one token is sure: 0.38."""
    config = mad.get_config("compression,katharopoulos")
    task, graphdef, parameters = small(config, sequence_length=3)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(parameters, state, batch):
        def loss(parameters):
            total, count = task.loss(nnx.merge(graphdef, parameters), batch, None)["loss"]
            return total / count

        updates, state = optimizer.update(jax.grad(loss)(parameters), state)
        return optax.apply_updates(parameters, updates), state

    task.data.update(batch_size=64, evaluation_examples=64)
    state = optimizer.init(parameters)
    for _, batch in zip(range(200), task.training_data(0, 1), strict=False):
        parameters, state = step(parameters, state, batch)
    assert task.evaluate(graphdef, parameters, "test")["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 15}, r"config.data.sequence_length: sequences of 15 tokens: 4 pairs"),
        ({"evaluation_lengths": (64, 8)}, r"config.data.evaluation_lengths: sequences of 8 tokens"),
        ({"evaluation_options": {"pears": ((64, 4),)}}, r"evaluation_options.pears: .*no such"),
        (
            {"evaluation_options": {"pairs": ((64, 32),)}},
            r"evaluation_options.pairs: .*32 pairs",
        ),
        ({"evaluation_options": {"pairs": (64, 4)}}, r"evaluation_options.pairs = \(64, 4\): must"),
        ({"evaluation_options": {"vocab_size": ((64, 512),)}}, r"vocab_size = 512: has more"),
    ],
)
def test_mistakes_show_before_training(changes, message):
    config = mqar.get_config()
    config.data.update(changes)
    with pytest.raises(UserError, match=message) as caught:
        make_task(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["recall", "recall,linear", "compression,lstm"])
def test_unknown_variants_are_named(variant):
    with pytest.raises(ConfigError, match=r"the variants are"):
        mad.get_config(variant)
