"""The speech-recognition task: it learns, the loss is CTC's, every utterance counts once."""

import itertools

import jax
import ml_collections
import numpy as np
import pytest
from etils import epath
from flax import nnx

from configs.papers.katharopoulos2020 import speech as config_file
from linear_transformer.data.speech import utterances as speech
from linear_transformer.errors import UserError
from linear_transformer.inference import ctc
from linear_transformer.inference.evaluation import Run, evaluate
from linear_transformer.models.speech_recognizer import TransformerConfig
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.tasks.base import Task
from linear_transformer.training.build import make_task
from linear_transformer.training.loop import train
from tests.training import runs

WORDS = ("ab", "a", "ba", "b a", "bb")
SIZES = {"train": 64, "validation": 21, "test": 9}
T, U = 8, 4


def utterance(rng, word):
    """Two frames a character, one of its own colour and one of nothing; the noise differs."""
    colours = {"a": 0, "b": 1, " ": 2}
    frames = np.zeros((2 * len(word) + 1, 40), np.float32)
    for n, character in enumerate(word):
        frames[2 * n + 1, colours[character] :: 3] = 1.0
    frames += 0.1 * rng.normal(size=frames.shape).astype(np.float32)
    return speech.Utterance(f"{word}.wav", word, len(frames), lambda: frames)


def load(split):
    rng = np.random.default_rng(["train", "validation", "test"].index(split))
    too_long = [utterance(rng, "abab")]
    return [utterance(rng, WORDS[rng.integers(5)]) for _ in range(SIZES[split])] + too_long


@pytest.fixture(autouse=True)
def made(monkeypatch):
    corpus = speech.SpeechCorpus("made", "none", 0, load)
    monkeypatch.setitem(speech.DATASETS, "made", lambda _: corpus)


def make_config(variant="linear,small", **changes):
    config = config_file.get_config(variant)
    config.update(num_steps=6, log_every=2, eval_every=1000, checkpoint_every=2, sample=False)
    config.data.update(dataset="made", max_frames=T, max_units=U, batch_size=8)
    config.optimizer.update(name="adam", learning_rate=1e-2, warmup_steps=0)
    if config.encoder == "bilstm":
        config.model.update(hidden=8, num_layers=1)
    else:
        config.model.update(width=16, num_heads=2, num_layers=1, feed_forward_width=16)
    for key, value in changes.items():
        part, _, key = key.rpartition("__")
        (config[part] if part else config)[key] = value
    return config


def test_learns(tmp_path, capsys):
    """The words are read without an error; evaluated again, it is what the run reported."""
    steps = {"num_steps": 150, "log_every": 50, "checkpoint_every": 150, "sample": True}
    workdir = epath.Path(tmp_path / "run")
    train(make_config(**steps), workdir)
    curve = runs.curve(workdir, "train")
    assert curve[-1]["loss"] < 0.2 * curve[0]["loss"]
    final = runs.curve(workdir, "validation")[-1]
    assert final["unit_error_rate"] < 0.05 and final["word_error_rate"] < 0.1
    metrics = evaluate(Run.load(workdir), "validation", stateful=True)
    assert metrics == {n: final[n] for n in ("loss", "unit_error_rate", "word_error_rate")}
    printed = capsys.readouterr().out
    said = [line[7:] for line in printed.splitlines() if line.startswith("said:")]
    found = [line[7:] for line in printed.splitlines() if line.startswith("found:")]
    assert len(said) == 5 and said == found
    assert set(said) <= set(WORDS)


def negative_log_likelihood(log_probs_TE, ids):
    """Over every path of a few symbols, one by one."""
    symbols = [0, *sorted(set(ids))]
    total = -np.inf
    for path in itertools.product(symbols, repeat=len(log_probs_TE)):
        if [s for s, _ in itertools.groupby(path) if s] == list(ids):
            score = sum(log_probs_TE[t, s] for t, s in enumerate(path))
            total = np.logaddexp(total, score)
    return -total


@pytest.mark.parametrize(("variant", "beam_width"), [("linear,small", 0), ("bilstm,small", 4)])
def test_evaluation_counts_every_utterance_once(variant, beam_width):
    """9 utterances in batches of 8, against a loop over single ones without padding."""
    task = make_task(make_config(variant, beam_width=beam_width))
    assert isinstance(task, Task)
    graphdef, parameters = nnx.split(task.make_model(nnx.Rngs(1)))
    metrics = task.evaluate(graphdef, parameters, "test")
    assert sorted(task.metric_names(graphdef, parameters)) == sorted(metrics)
    examples, _ = task.source.split("test")
    assert len(examples) == 9
    model = jax.jit(lambda frames: nnx.merge(graphdef, parameters)(frames))
    loss, errors, words = 0.0, 0, 0
    for example in examples:
        frames = example.utterance.read()
        logits = np.asarray(model(frames[None]), np.float64)[0]
        log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        loss += negative_log_likelihood(log_probs, example.ids.tolist())
        found = ctc.greedy(log_probs)
        if beam_width:
            found, _ = ctc.prefix_beam_search(log_probs, beam_width)
        errors += ctc.edit_distance(found.tolist(), example.ids.tolist())
        text, expected = (task.source.units.write(x).split() for x in (found, example.ids))
        words += ctc.edit_distance(text, expected)
    units = sum(len(e.ids) for e in examples)
    assert metrics["loss"] == pytest.approx(loss / units, rel=1e-4)
    assert metrics["unit_error_rate"] == errors / units
    spoken = sum(len(e.utterance.transcript.split()) for e in examples)
    assert metrics["word_error_rate"] == words / spoken
    first = task.evaluate(graphdef, parameters, "test", max_batches=1)
    assert first["loss"] != metrics["loss"]


def test_padding_changes_no_loss():
    """The loss of rows of 8 frames is that of rows of 23; without lengths it is another."""
    losses = []
    for frames in (T, 23):
        task = make_task(make_config(data__max_frames=frames))
        task.source._fits = lambda u, ids: u.num_frames <= T and len(ids) <= U
        graphdef, parameters = nnx.split(task.make_model(nnx.Rngs(1)))
        batch = next(task.evaluation_batches("test"))
        loss = jax.jit(lambda p, b, task=task, g=graphdef: task.loss(nnx.merge(g, p), b, None))
        losses.append(float(loss(parameters, batch)["loss"][0]))
    batch["num_frames"] = np.full(8, 23, np.int32)
    whole = float(loss(parameters, batch)["loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert whole != pytest.approx(losses[1], rel=1e-3)


def test_describe():
    task = make_task(make_config())
    facts = task.describe(nnx.eval_shape(lambda: task.make_model(ParameterRngs(0))))
    assert facts["data"].startswith("made, 64 utterances (0.1 minutes, ")
    assert facts["data"].endswith(" characters) to train on, 21 to validate on (none)")
    assert facts["left out"].startswith("1 and 1: more than 8 frames or 4 units")


MISTAKES = {
    "encoder": ({"encoder": "gru"}, r"config\.encoder is 'gru'; choose one of transformer, bilstm"),
    "beam": ({"beam_width": -1}, r"config\.beam_width is -1"),
    "data set": ({"data__dataset": "nope"}, r"config\.data\.dataset"),
    "batch": ({"data__batch_size": 0}, r"config\.data\.batch_size is 0"),
    "positions": (
        {"model__positions": "learned", "model__max_positions": 7},
        r"max_positions \(7\) is less than config\.data\.max_frames \(8\)",
    ),
    "key": ({"model__hidden": 3}, r"config\.model\.hidden: no such key"),
    "mixer": (
        {"model__mixers": ml_collections.ConfigDict({"linear": {"directions": 3}})},
        r"config\.model\.mixers\.linear\.directions",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    changes, message = MISTAKES[mistake]
    config = make_config()
    with config.unlocked():
        for key, value in changes.items():
            part, _, name = key.rpartition("__")
            (config[part] if part else config)[name] = value
    with pytest.raises(UserError, match=message) as raised:
        make_task(config)
    assert "\n" not in str(raised.value)


def test_missing_keys_have_a_default():
    config = make_config()
    del config.encoder, config.beam_width
    task = make_task(config)
    assert isinstance(task.model_config, TransformerConfig)
    assert task.beam_width == 0
