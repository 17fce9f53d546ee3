"""The inpainting task: its loss against NumPy, repeatable evaluation, and that it learns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

from configs.papers.hadjeres2021 import piano_small
from linear_transformer.data.music import midi
from linear_transformer.data.music.note_pipeline import PAD, START, evaluation_events
from linear_transformer.errors import UserError
from linear_transformer.inference.evaluation import Run, evaluate, sample
from linear_transformer.inference.generation import Sampler
from linear_transformer.tasks.base import Task
from linear_transformer.training.build import make_task
from linear_transformer.training.loop import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pieces that can be learned: a scale up and down, each in a rhythm of its own."""
    folder = tmp_path_factory.mktemp("midi")
    for number in range(6):
        notes = np.zeros(120, midi.NOTE)
        notes["onset"] = np.arange(120) * (0.1 + 0.02 * number)
        notes["duration"] = 0.1
        steps = np.arange(120) % 16
        notes["pitch"] = 55 + number + np.where(steps < 8, steps, 16 - steps)
        notes["velocity"] = 60 + 5 * (np.arange(120) % 2)
        midi.write_notes(epath.Path(folder / f"{number}.mid"), notes)
    return folder


def make_config(folder, **changes):
    config = piano_small.get_config()
    config.data.update(dataset="midi_folder", path=str(folder), batch_size=8, sequence_length=64)
    config.model.update(
        width=32, encoder_layers=1, decoder_layers=1, num_heads=2, feed_forward_width=64
    )
    config.update(num_steps=4, log_every=2, eval_every=1000, checkpoint_every=1000)
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (config[part] if part else config)[name] = value
    return config


def test_loss(folder):
    """Means over the masked events that are neither PAD nor START, channel by channel."""
    task = make_task(make_config(folder))
    assert isinstance(task, Task)
    model = task.make_model(nnx.Rngs(0))
    batch = next(evaluation_events(task.corpus, "train", batch_size=40, num_events=16))
    arrays = jax.tree.map(jnp.asarray, batch)
    inputs = [arrays[name] for name in ("events", "elapsed", "masked")]
    logits = jax.jit(lambda *inputs: model(*inputs))(*inputs)
    metrics = jax.device_get(jax.jit(lambda batch: task.loss(model, batch, None))(arrays))
    kind = batch["events"][..., 0] - midi.NUM_VALUES[0]
    counted = batch["masked"] & (kind != PAD) & (kind != START)
    assert 0 < counted.sum() < batch["masked"].sum()
    total = 0.0
    for channel, name in enumerate(midi.CHANNELS):
        log_p = np.asarray(jax.nn.log_softmax(logits[channel]), np.float64)
        targets = batch["events"][..., channel]
        nll = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0][counted].sum()
        right = (log_p.argmax(-1) == targets)[counted].sum()
        np.testing.assert_allclose(metrics[f"nll_{name}"], (nll, counted.sum()), rtol=1e-5)
        np.testing.assert_allclose(metrics[f"accuracy_{name}"], (right, counted.sum()))
        total += nll
    np.testing.assert_allclose(metrics["loss"], (total, 4 * counted.sum()), rtol=1e-5)
    means = task.summarize(
        {name: tuple(map(float, pair)) for name, pair in metrics.items()}, "train"
    )
    assert means["nats_per_event"] == pytest.approx(4 * means["loss"], rel=1e-5)


def test_unigram(folder):
    """Against frequencies counted by hand."""
    task = make_task(make_config(folder))
    counts = np.zeros(88 + 3)
    for piece in task.corpus.pieces("train"):
        np.add.at(counts, piece["pitch"] - 21, 1)
    expected = -np.log((counts + 1) / (counts + 1).sum())
    np.testing.assert_allclose(task._unigram_nll[0], expected)


@pytest.mark.slow
def test_trains_and_evaluates(folder, tmp_path):
    """Far below the unigram entropy in seconds; evaluated again, it is what the run reported."""
    config = make_config(folder, num_steps=200, log_every=50, optimizer__learning_rate=1e-2)
    workdir = epath.Path(tmp_path / "run")
    train(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    final = [line for line in lines if line["split"] == "validation"][-1]
    # The shortcut: no context at all.
    assert final["nats_per_event"] < 0.6 * final["unigram_nats_per_event"]

    run = Run.load(workdir)
    metrics = evaluate(run, "validation", stateful=True)
    assert metrics == {name: final[name] for name in metrics}
    record = json.loads((workdir / "eval-validation.json").read_text())
    assert record["metrics"] == metrics
    assert run.task.metric_names(run.graphdef, run.parameters) == list(metrics)
    with pytest.raises(UserError, match=r"linear_transformer\.inpaint fills gaps"):
        sample(run, "text", 3, Sampler(), 0)


@pytest.mark.slow
def test_two_parts(folder, tmp_path):
    """Stopped after step 2 and gone on with, it is the run that was not stopped, bit for bit."""
    config = make_config(folder, optimizer__schedule="constant", final_evaluation=False)
    whole = train(config, epath.Path(tmp_path / "whole"))
    config.num_steps = 2
    train(config, epath.Path(tmp_path / "parts"))
    config.num_steps = 4
    parts = train(config, epath.Path(tmp_path / "parts"))
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


MISTAKES = {
    "data set": ({"data__dataset": "nope"}, r"config\.data\.dataset"),
    "length": ({"data__sequence_length": 66}, r"config\.data\.sequence_length \(66\)"),
    "model key": ({"model__heads": 3}, r"config\.model\.heads: no such key"),
    "residual": ({"model__residual": "x"}, r"config\.model\.residual"),
    "path": ({"data__path": ""}, r"config\.data\.path is empty"),
    "elapsed": (
        {"data__dataset": "chorales", "data__path": ""},
        r"config\.model\.elapsed_width is 32",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(folder, mistake):
    changes, message = MISTAKES[mistake]
    config = make_config(folder)
    with config.unlocked():
        for key, value in changes.items():
            part, _, name = key.partition("__")
            config[part][name] = value
    with pytest.raises(UserError, match=message) as raised:
        make_task(config).training_data(0, 1)
    assert "\n" not in str(raised.value)
