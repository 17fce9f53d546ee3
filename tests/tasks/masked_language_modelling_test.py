"""Masked language modelling: the masks' shares and seeds, the loss, and evaluation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

from linear_transformer.errors import ConfigError
from linear_transformer.inference.evaluation import Run, evaluate, sample
from linear_transformer.inference.generation import Sampler
from linear_transformer.tasks.base import Task
from linear_transformer.tasks.masked_language_modelling import mask_tokens
from linear_transformer.training.build import make_task
from tests.training import runs

BOS, MASK = 7, 50


def make_config(text, **changes):
    config = runs.make_config(text, model__positions="learned", **changes)
    config.task = "masked_language_modelling"
    for options in config.model.mixers.values():
        options.direction = "bidirectional"
        if "convolution" in options:
            options.convolution = 0
    return config


def masks(tokens, maskable, seed=0, rate=0.15):
    keys = jax.random.split(jax.random.key(seed), tokens.shape[0])
    return mask_tokens(
        jnp.asarray(tokens, jnp.int32),
        jnp.asarray(maskable),
        keys,
        rate=rate,
        bos_id=BOS,
        mask_id=MASK,
    )


def test_shares_of_the_masks():
    """15 % predicted; of these 80 % masked, 10 % random, 10 % as they are; none of the others."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(MASK, size=(400, 101))
    tokens[tokens == BOS] = 0
    maskable = rng.random(tokens.shape) < 0.9
    read, predicted = map(np.asarray, masks(tokens, maskable))
    assert not np.any(predicted & ~maskable)
    assert np.array_equal(read[~predicted], tokens[~predicted])
    share = predicted.sum() / maskable.sum()
    assert share == pytest.approx(0.15, abs=0.002)
    # The number in a row is 0.15 n rounded up or down.
    expected = 0.15 * maskable.sum(1)
    assert np.all(np.abs(predicted.sum(1) - expected) < 1)
    hidden, before = read[predicted], tokens[predicted]
    n = predicted.sum()
    sigma = math.sqrt(0.8 * 0.2 / n)
    assert np.mean(hidden == MASK) == pytest.approx(0.8, abs=4 * sigma)
    # A random token is by chance the one before with probability 1 / 49.
    assert np.mean(hidden == before) == pytest.approx(0.1 + 0.1 / 49, abs=4 * sigma)
    drawn = hidden[(hidden != MASK) & (hidden != before)]
    assert BOS not in drawn
    assert set(drawn) == set(range(MASK)) - {BOS}
    # Every place is as likely as every other.
    places = predicted.sum(0) / maskable.sum(0)
    assert np.std(places) == pytest.approx(math.sqrt(0.15 * 0.85 / 360), rel=0.3)


def test_masks_depend_on_the_key_alone():
    tokens, maskable = np.full((4, 40), 3), np.ones((4, 40), bool)
    first, same, other = (masks(tokens, maskable, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.tokens_BT, same.tokens_BT)
    assert not np.array_equal(first.predicted_BT, other.predicted_BT)
    assert len({row.tobytes() for row in np.asarray(first.predicted_BT)}) == 4


def test_short_rows():
    """A row with any text has a prediction, and one without has none."""
    maskable = np.zeros((3, 10), bool)
    maskable[1, 4] = True
    maskable[2, :3] = True
    _, predicted = masks(np.full((3, 10), 3), maskable)
    assert np.array_equal(np.sum(predicted, axis=1), [0, 1, 1])


@functools.cache
def task_and_model(text, **changes):
    task = make_task(make_config(text, **changes))
    return task, *nnx.split(task.make_model(nnx.Rngs(0)))


def test_loss_is_cross_entropy_of_the_hidden_tokens(text):
    task, graphdef, parameters = task_and_model(text)
    assert isinstance(task, Task)
    batch = jax.tree.map(jnp.asarray, next(iter(task.training_data(0, 1))))
    model = nnx.merge(graphdef, parameters)
    key = jax.random.key(3)
    metrics = task.loss(model, batch, key)
    # With no dropout the masks are all that the key decides; find them from what the model reads.
    keys = jax.random.split(jax.random.split(key)[1], 4)
    read, predicted = mask_tokens(
        batch["targets"],
        batch["weights"] > 0,
        keys,
        rate=0.15,
        bos_id=256,
        mask_id=257,
    )
    logits = np.asarray(model(read)[0], np.float64)
    assert logits.shape[-1] == 258
    log_p = logits - np.log(np.exp(logits - logits.max()).sum(-1, keepdims=True)) - logits.max()
    picked = np.take_along_axis(log_p, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    predicted = np.asarray(predicted)
    assert float(metrics["loss"][0]) == pytest.approx(-picked[predicted].sum(), rel=1e-5)
    assert float(metrics["loss"][1]) == predicted.sum()
    right = (logits.argmax(-1) == batch["targets"])[predicted].sum()
    assert float(metrics["accuracy"][0]) == right


def test_masks_are_new_at_each_step(text):
    task, graphdef, parameters = task_and_model(text)
    batch = jax.tree.map(jnp.asarray, next(iter(task.training_data(0, 1))))
    loss = jax.jit(lambda key: task.loss(nnx.merge(graphdef, parameters), batch, key)["loss"][0])
    steps = [float(loss(jax.random.fold_in(jax.random.key(0), n))) for n in (0, 1, 0)]
    assert steps[0] == steps[2] != steps[1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_fixed(split, text):
    """The same predictions whatever the batch: every row has masks of its own number."""
    values = []
    for size in (4, 3):
        task, graphdef, parameters = task_and_model(text, data__batch_size=size)
        values.append(task.evaluate(graphdef, parameters, split))
        assert task.metric_names(graphdef, parameters) == list(values[-1])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    tokens = sum(map(len, task.corpus.documents(split)))
    assert values[0]["masked_tokens"] == pytest.approx(0.15 * tokens, rel=0.15)
    assert values[0]["perplexity"] == pytest.approx(math.exp(values[0]["loss"]))
    assert values[0]["bits_per_masked_token"] == pytest.approx(values[0]["loss"] / math.log(2))
    first = task.evaluate(graphdef, parameters, split, max_batches=1)
    assert first["masked_tokens"] < values[0]["masked_tokens"]


def test_packed_documents_stay_apart(text):
    task, graphdef, parameters = task_and_model(text, data__packing="packed")
    batch = jax.tree.map(jnp.asarray, next(iter(task.training_data(0, 1))))
    assert batch["segment_ids"].max() > 0
    metrics = task.loss(nnx.merge(graphdef, parameters), batch, jax.random.key(0))
    assert np.isfinite(float(metrics["loss"][0]))


@pytest.mark.slow
def test_training_learns_and_evaluates_like_eval(text, tmp_path):
    """Words of few letters: neighbours tell a hidden letter, which its frequency alone does not."""
    config = make_config(
        text,
        num_steps=200,
        log_every=50,
        eval_every=200,
        checkpoint_every=200,
        final_evaluation=True,
        sample=True,
        model__width=32,
        data__batch_size=16,
    )
    options = {"block_size": 16, "scores": "softmax", "lrpe": True, "direction": "bidirectional"}
    config.model.pattern = ("diag",)
    config.model.mixers = {"diag": options}
    config.model.num_layers = 2
    config.optimizer.update(name="adamw", learning_rate=1e-2, options={})
    runs.run(config, tmp_path)
    final = runs.curve(tmp_path, "validation")[-1]
    counts = np.bincount(np.frombuffer(b"".join(f.read_bytes() for f in text.iterdir()), np.uint8))
    shares = counts[counts > 0] / counts.sum()
    frequencies = -np.sum(shares * np.log(shares))  # what letters alone can tell, in nats
    assert final["loss"] < 0.6 * frequencies
    run = Run.load(epath.Path(tmp_path))
    metrics = evaluate(run, "validation", stateful=True)
    assert {name: metrics[name] for name in final.keys() & metrics.keys()} == {
        name: value for name, value in final.items() if name in metrics
    }
    with pytest.raises(ConfigError, match="--prompt: a masked language model"):
        sample(run, "a", 5, Sampler(), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_rate": 0.0}, r"config\.mask_rate is 0\.0"),
        ({"label_smoothing": 0.1}, r"config\.label_smoothing is 0\.1"),
        ({"model__max_positions": 16}, r"config\.model\.max_positions \(16\)"),
    ],
)
def test_mistakes_name_the_key(changes, message, text):
    with pytest.raises(ConfigError, match=message):
        make_task(make_config(text, **changes))


def test_the_direction_must_fit_the_task(text):
    causal = make_config(text)
    causal.model.mixers.linear.direction = "causal"
    with pytest.raises(ConfigError, match=r"config\.model\.mixers\.linear\.direction=bidirection"):
        make_task(causal)
    ahead = make_config(text)
    ahead.task = "language_modelling"
    with pytest.raises(ConfigError, match=r"config\.model\.mixers\.linear: direction must be caus"):
        make_task(ahead)
