"""The image-classification task: it learns, goes on where it stopped, counts every image once."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from etils import epath
from flax import nnx
from PIL import Image

from configs.papers.shen2021 import fashion_mnist, imagenet
from linear_transformer.errors import UserError
from linear_transformer.inference.evaluation import Run, evaluate, sample
from linear_transformer.inference.generation import Sampler
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.tasks.base import Task
from linear_transformer.training.build import make_task
from linear_transformer.training.loop import train
from tests.data.images_test import idx
from tests.training import runs

SIDE = 8


def bars(count, seed):
    """Noise and a bar in one of ten places, five across and five down; the place is the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=count, dtype=np.uint8)
    pixels = rng.integers(100, size=(count, SIDE, SIDE), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        place = int(label) % 5 + 1
        (image if label < 5 else image.T)[place] += 120
    return pixels, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """1,200 images, half of them held out, and 77 to test."""
    folder = tmp_path_factory.mktemp("bars")
    for prefix, count in (("train", 1_200), ("t10k", 77)):
        pixels, labels = bars(count, count)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def make_config(folder, variant="efficient", **changes):
    config = fashion_mnist.get_config(variant)
    # Neither flips nor shifts leave a bar in its place.
    config.data.update(path=str(folder), batch_size=16, flip=False, padding=0)
    config.model.update(stage_blocks=(1, 1), width=8)
    # Compiles faster than Muon.
    momentum = ml_collections.ConfigDict({"momentum": 0.9})
    config.optimizer.update(name="sgd", learning_rate=0.1, weight_decay=0.0, options=momentum)
    config.update(num_steps=6, log_every=2, eval_every=1000, checkpoint_every=2)
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (config[part] if part else config)[name] = value
    return config


def test_learns(folder, tmp_path):
    """Most images of ten classes right in seconds; evaluated again, it is what the run reported."""
    config = make_config(folder, num_steps=160, log_every=80, checkpoint_every=160)
    workdir = epath.Path(tmp_path / "run")
    train(config, workdir)
    final = runs.curve(workdir, "validation")[-1]
    assert final["accuracy"] > 0.8  # one of ten classes is right by chance
    assert "examples_per_second" in runs.records(workdir)[0]
    run = Run.load(workdir)
    metrics = evaluate(run, "validation", stateful=True)
    assert metrics == {name: final[name] for name in ("loss", "accuracy")}
    assert json.loads((workdir / "eval-validation.json").read_text())["metrics"] == metrics
    with pytest.raises(UserError, match="not of a language model"):
        sample(run, "text", 3, Sampler(), 0)


@pytest.mark.slow  # the loop is the one of tests/tasks/sequence_classification_test.py
def test_two_parts(folder, tmp_path):
    """Stopped after step 4 and gone on with, it is the run that was not stopped, bit for bit."""
    changes = {"optimizer__schedule": "constant", "final_evaluation": False, "data__flip": True}
    config = make_config(folder, data__padding=1, **changes)
    whole = train(config, epath.Path(tmp_path / "whole"))
    config.num_steps = 4
    train(config, epath.Path(tmp_path / "parts"))
    config.num_steps = 6
    runs.assert_same_state(train(config, epath.Path(tmp_path / "parts")), whole)


def test_evaluation_counts_every_image_once(folder):
    """77 images in batches of 16, against the mean over single images."""
    task = make_task(make_config(folder))
    assert isinstance(task, Task)
    model = task.make_model(nnx.Rngs(1))
    graphdef, parameters = nnx.split(model)
    metrics = task.evaluate(graphdef, parameters, "test")
    assert task.metric_names(graphdef, parameters) == list(metrics)
    pixels, labels = task.source.split("test")
    assert len(labels) == 77
    pixels = jnp.asarray(pixels, jnp.float32) / 63.75 - 2
    logits = np.asarray(jax.jit(lambda x: model(x))(pixels), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -log_p[np.arange(77), labels]
    assert metrics["loss"] == pytest.approx(nll.mean(), rel=1e-5)
    assert metrics["accuracy"] == np.mean(logits.argmax(-1) == labels)
    first = task.evaluate(graphdef, parameters, "test", max_batches=2)
    assert first["loss"] == pytest.approx(nll[:32].mean(), rel=1e-5)
    # The shortcut: the mean over batches, in which the last 13 images weigh as much as 16.
    uneven = np.mean([nll[start : start + 16].mean() for start in range(0, 77, 16)])
    assert uneven != pytest.approx(nll.mean(), rel=1e-5)


def test_photographs(tmp_path):
    """The model of ImageNet made narrow, on files; the facts at the start of a run."""
    for part in ("train", "val"):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (50, 40), (200 * number,) * 3).save(tmp_path / part / name / "1.JPEG")
    config = imagenet.get_config("two_modules")
    config.data.update(path=str(tmp_path), batch_size=2, image_size=32)
    config.model.update(width=8, norm_groups=4)
    task = make_task(config)
    batch = next(iter(task.training_data(0, 1)))
    assert batch["images"].shape == (2, 32, 32, 3)
    model = nnx.eval_shape(lambda: task.make_model(ParameterRngs(0)))
    facts = task.describe(model)
    assert facts["data"] == "image_folder, 2 images to train on (unknown)"
    assert facts["images"] == "32 x 32 x 3, 2 classes"
    graphdef, parameters = nnx.split(model)
    metrics = jax.eval_shape(
        lambda p, b: task.loss(nnx.merge(graphdef, p), b, None), parameters, batch
    )
    assert metrics.keys() == {"loss", "accuracy"}


MISTAKES = {
    "data set": ({"data__dataset": "nope"}, r"config\.data\.dataset"),
    "path": ({"data__path": "/nowhere"}, r"config\.data\.path = /nowhere"),
    "padding": ({"data__padding": -1}, r"config\.data\.padding is -1"),
    "model key": ({"model__depth": 3}, r"config\.model\.depth: no such key"),
    "block": ({"model__attention_after": (9,)}, r"attention_after names block 9"),
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
        make_task(config)
    assert "\n" not in str(raised.value)


def test_uneven_processes(folder):
    with pytest.raises(UserError, match=r"config\.data\.batch_size \(16\)"):
        make_task(make_config(folder)).training_data(0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", fashion_mnist.VARIANTS)
def test_fashion_mnist(tmp_path, variant):
    """Seven of eight validation images are right, as in the config's docstring."""
    workdir = epath.Path(tmp_path / "run")
    train(fashion_mnist.get_config(variant), workdir)
    assert runs.curve(workdir, "validation")[-1]["accuracy"] > 0.875
