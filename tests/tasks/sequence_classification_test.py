"""The sequence-classification task: it learns, padding is nothing, every example counts once."""

import itertools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from etils import epath
from flax import nnx

from configs.lra import text, variants
from linear_transformer.data import sequence_batches
from linear_transformer.errors import UserError
from linear_transformer.inference.evaluation import Run, evaluate
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.tasks.base import Task
from linear_transformer.tasks.sequence_classification import SequenceClassification
from linear_transformer.training.build import make_task
from linear_transformer.training.loop import train
from tests.layers import slow_except
from tests.ops.contract import relative_rms
from tests.training import runs

T = 12
LENGTHS = (4, 9, T)  # each is a program where no row is padded
SIZES = {"train": 600, "validation": 101, "test": 37}
QUICK = {"xla_backend_optimization_level": 0}


class Made:
    """Random ids, 4, 9 or 12 of them; the class is whether 1 is among the first three.

    Of pairs: whether both sequences begin with the same one of two ids.
    """

    name = "made"
    licence = "none"
    vocab_size = 9
    num_classes = 2
    num_threads = 0

    def __init__(self, sequences_per_example=1):
        self.sequences_per_example = sequences_per_example
        self.made = {}
        for seed, (split, count) in enumerate(SIZES.items()):
            rng = np.random.default_rng(seed)
            self.made[split] = [self.example(rng) for _ in range(count)]

    def example(self, rng):
        rows = [
            rng.integers(2, 9, size=rng.choice(LENGTHS)) for _ in range(self.sequences_per_example)
        ]
        label = int(rng.integers(2))
        if self.sequences_per_example == 1:
            rows[0][rng.integers(3)] = 1 if label else 2
        else:
            rows[0][:3] = rng.integers(2, 4)
            rows[1][:3] = rows[0][0] if label else 5 - rows[0][0]
        return tuple(rows), label

    def split(self, name):
        rows, labels = zip(*self.made[name], strict=True)
        return rows, np.array(labels, np.int32)

    def read(self, item):
        return item


@pytest.fixture(autouse=True)
def made(monkeypatch):
    for sequences_per_example in (1, 2):
        source = Made(sequences_per_example)
        name = ("made", "pairs")[sequences_per_example - 1]
        monkeypatch.setitem(sequence_batches.DATASETS, name, lambda _, source=source: source)


def make_config(name="linear", dataset="made", **changes):
    setting = variants.Setting(
        num_layers=1,
        width=16,
        num_heads=2,
        feed_forward=16,
        batch_size=16,
        num_steps=6,
        sequence_length=changes.pop("length", T),
        optimizer=variants.adam(1e-2, warmup_steps=0),
        pooling=changes.pop("pooling", "mean"),
    )
    config = variants.get_config(name, False, {"lra": setting}, {"dataset": dataset, "path": ""})
    config.update(log_every=2, eval_every=1000, checkpoint_every=2)
    for key, value in changes.items():
        part, _, key = key.rpartition("__")
        (config[part] if part else config)[key] = value
    return config


@pytest.mark.parametrize("dataset", ["made", pytest.param("pairs", marks=pytest.mark.slow)])
def test_learns(dataset, tmp_path):
    """Nearly all right in seconds; evaluated again, it is what the run reported."""
    steps = {"num_steps": 150, "log_every": 50, "checkpoint_every": 150}
    workdir = epath.Path(tmp_path / "run")
    train(make_config(dataset=dataset, **steps), workdir)
    final = runs.curve(workdir, "validation")[-1]
    assert final["accuracy"] > 0.9  # half is right by chance
    metrics = evaluate(Run.load(workdir), "validation", stateful=True)
    assert metrics == {name: final[name] for name in ("loss", "accuracy")}
    assert json.loads((workdir / "eval-validation.json").read_text())["metrics"] == metrics


@pytest.mark.slow
def test_two_parts(tmp_path):
    """Stopped after step 4 and gone on with, it is the run that was not stopped, bit for bit."""
    config = make_config(optimizer__schedule="constant", final_evaluation=False)
    whole = train(config, epath.Path(tmp_path / "whole"))
    config.num_steps = 4
    train(config, epath.Path(tmp_path / "parts"))
    config.num_steps = 6
    runs.assert_same_state(train(config, epath.Path(tmp_path / "parts")), whole)


@pytest.mark.parametrize("dataset", ["made", "pairs"])
def test_evaluation_counts_every_example_once(dataset):
    """37 examples in batches of 16, against a loop over single ones without padding."""
    config = make_config(dataset=dataset)
    task = make_task(config)
    assert isinstance(task, Task)
    graphdef, parameters = nnx.split(task.make_model(nnx.Rngs(1)))
    metrics = task.evaluate(graphdef, parameters, "test")
    assert task.metric_names(graphdef, parameters) == list(metrics)
    rows, labels = task.source.split("test")

    @jax.jit
    def logits_of(tokens, mask):
        return nnx.merge(graphdef, parameters)(tokens, **mask)

    losses, right = [], 0
    for pair, label in zip(rows, labels, strict=True):
        if dataset == "made":
            logits = logits_of(jnp.asarray(pair[0][None], jnp.int32), {})
        else:
            size = max(map(len, pair))
            padded = np.array([np.pad(x, (0, size - len(x))) for x in pair], np.int32)
            mask = np.arange(size) < np.array([[len(x)] for x in pair])
            logits = logits_of(padded[None], {"mask_B2T": jnp.asarray(mask[None])})
        logits = np.asarray(logits, np.float64)[0]
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        right += logits.argmax() == label
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["accuracy"] == right / 37
    first = task.evaluate(graphdef, parameters, "test", max_batches=2)
    assert first["loss"] == pytest.approx(np.mean(losses[:32]), rel=1e-5)
    uneven = np.mean([np.mean(losses[start : start + 16]) for start in (0, 16, 32)])
    assert uneven != pytest.approx(np.mean(losses), rel=1e-5)


def losses_of_lengths(task, lengths):
    """The loss of the first 16 examples padded to each of the lengths."""
    graphdef, parameters = nnx.split(task.make_model(nnx.Rngs(1)))
    losses = []
    for length in lengths:
        task.data.sequence_length = length
        batch = next(task.evaluation_batches("test"))
        loss = jax.jit(
            lambda p, b: task.loss(nnx.merge(graphdef, p), b, None), compiler_options=QUICK
        )
        losses.append(np.asarray(loss(parameters, batch)["loss"][0]))
    return losses


QUICKLY = (
    ("linear", "cls"),
    ("linear", "last"),
    ("softmax", "mean"),
    ("lion", "mean"),
    ("transnormer_t1", "mean"),
    ("convolution", "mean"),
    ("lsh", "mean"),
    ("retnet", "mean"),
    ("retnet", "last"),
)
PADDED = itertools.product(variants.NAMES, ("cls", "mean", "last"))


@pytest.mark.parametrize(
    ("name", "pooling"),
    slow_except(QUICKLY, PADDED),
)
def test_padding_changes_nothing(name, pooling):
    """Padded to 12 tokens and to 19, the same loss."""
    config = make_config(name, pooling=pooling, length=19)
    if config.model.pooling != pooling:
        pytest.skip("a causal mixer has no cls token")
    short, long = losses_of_lengths(make_task(config), (T, 19))
    assert relative_rms(long, short) < 1e-5


def test_padding_counts_without_the_mask():
    """Negative control: the loss as if no sequence were padded."""

    class Unmasked(SequenceClassification):
        def __init__(self, config):
            super().__init__(config)
            self.padded = False

    short, long = losses_of_lengths(Unmasked(make_config(length=19)), (T, 19))
    assert relative_rms(long, short) > 1e-3


def test_describe():
    task = make_task(make_config(dataset="pairs"))
    facts = task.describe(nnx.eval_shape(lambda: task.make_model(ParameterRngs(0))))
    assert facts["data"] == "made, 600 examples to train on (none)"
    assert facts["sequences"] == "pairs of up to 12 tokens of 9, 2 classes"
    assert 0.5 <= float(facts["chance"].split()[0]) < 0.6
    assert int(facts["parameters"].replace(",", "")) > 1000


MISTAKES = {
    "data set": ({"data__dataset": "nope"}, r"config\.data\.dataset"),
    "pixels": ({"model__input": "pixels"}, r"config\.model\.input is 'pixels', and made is text"),
    "input": ({"model__input": "bits"}, r"config\.model\.input is 'bits'; choose one of tokens"),
    "length": ({"data__sequence_length": 0}, r"config\.data\.sequence_length is 0"),
    "positions": (
        {
            "model__positions": "learned",
            "model__max_positions": 13,
            "data__sequence_length": 14,
        },
        r"max_positions \(13\) is less than config\.data\.sequence_length \(14\)",
    ),
    "cls": (
        {
            "model__positions": "learned",
            "model__max_positions": 13,
            "model__pooling": "cls",
            "data__sequence_length": 13,
        },
        r"max_positions \(13\) is less than config\.data\.sequence_length and the cls token \(14\)",
    ),
    "cosformer": (
        {
            "model__pattern": ("cosformer",),
            "model__mixers": ml_collections.ConfigDict({"cosformer": {"max_length": 5}}),
        },
        r"mixers\.cosformer\.max_length \(5\) is less than config\.data\.sequence_length \(12\)",
    ),
    "key": ({"model__tied": 3}, r"config\.model\.tied is 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    changes, message = MISTAKES[mistake]
    config = make_config()
    with config.unlocked():
        for key, value in changes.items():
            part, _, name = key.partition("__")
            config[part][name] = value
    with pytest.raises(UserError, match=message) as raised:
        make_task(config)
    assert "\n" not in str(raised.value)


def test_uneven_processes():
    with pytest.raises(UserError, match=r"config\.data\.batch_size \(16\)"):
        make_task(make_config()).training_data(0, 3)


def test_text_is_a_task_of_this():
    assert text.get_config().task == "sequence_classification"
