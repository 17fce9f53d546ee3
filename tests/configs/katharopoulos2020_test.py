"""Katharopoulos et al. 2020: sizes of the models, and that their tasks learn and evaluate."""

import gzip
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

from configs.papers.katharopoulos2020 import cifar10, copying, mnist
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.inference.evaluation import Run, evaluate
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.ops import logistic_mixture
from linear_transformer.training.build import make_task
from linear_transformer.training.loop import train


def model_of(config, vocab_size):
    model_config = configuration.build(
        LanguageModelConfig, config.model, "model", vocab_size=vocab_size
    )
    return nnx.eval_shape(lambda: LanguageModel(model_config, rngs=ParameterRngs(0)))


def layers(count, width=256):
    """Parameters of post-norm layers: 4 projections, 2 feed-forward matrices, 2 norms."""
    return count * (4 * (width**2 + width) + 8 * width**2 + 5 * width + 4 * width)


@pytest.mark.parametrize("variant", ["linear", "softmax"])
def test_parameters(variant):
    """8 and 16 layers, half the width for the token, 30 outputs without bias."""
    images = logistic_mixture.LEVELS * 128 + 256 * 30
    assert model_of(mnist.get_config(variant), 256).num_parameters == images + layers(8)
    assert model_of(cifar10.get_config(variant), 256).num_parameters == images + layers(16)
    assert model_of(copying.get_config(variant), 11).num_parameters == (
        11 * 128 + 256 * 11 + layers(4)
    )


def test_lsh_shares_queries_and_keys():
    saved = 8 * (256**2 + 256)
    linear, lsh = (model_of(mnist.get_config(v), 256).num_parameters for v in ("linear", "lsh"))
    assert linear - lsh == saved


@pytest.mark.parametrize("module", [copying, mnist, cifar10])
def test_unknown_variants_are_named(module):
    with pytest.raises(ConfigError, match="lstm: the variants are linear, softmax, lsh"):
        module.get_config("lstm")


def test_copying_learns_and_evaluates(tmp_path):
    """Chance is 1 in 10; a small model on short words is well above it after 150 steps."""
    config = copying.get_config("linear,small")
    config.num_steps = config.eval_every = config.checkpoint_every = 150
    config.data.update(batch_size=32, sequence_length=12, evaluation_examples=50)
    config.data.evaluation_lengths = (12, 20)
    config.model.update(width=64, num_layers=1, dropout=0.0, feed_forward_width=64)
    config.optimizer.learning_rate = 1e-2
    train(config, epath.Path(tmp_path))
    metrics = evaluate(Run.load(epath.Path(tmp_path)), "validation", stateful=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "validation"][-1]
    assert last["accuracy"] == metrics["accuracy"]
    assert metrics["accuracy"] > 0.3
    assert metrics["accuracy_at_12"] == metrics["accuracy"] != metrics["accuracy_at_20"]


def write_mnist(folder, count=20, size=5):
    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        images = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
        head = struct.pack(">I3I", 0x803, count, size, size)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = struct.pack(">II", 0x801, count) + bytes(count)
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


@pytest.mark.slow
def test_images_train_and_evaluate(tmp_path):
    """Every test image once, whatever the batch: the loss is that of the formula."""
    write_mnist(tmp_path)
    config = mnist.get_config("linear,small")
    config.num_steps = config.eval_every = config.checkpoint_every = 3
    config.data.update(path=str(tmp_path), batch_size=8, sequence_length=24)
    config.model.update(width=16, num_layers=1, feed_forward_width=16, num_heads=2)
    workdir = epath.Path(tmp_path) / "run"
    train(config, workdir)
    run = Run.load(workdir)
    measured = evaluate(run, "test", stateful=False)["bits_per_dim"]
    images, _ = run.task.source.split("test")
    pixels = jnp.asarray(images.reshape(20, 25), jnp.int32)
    parameters, _ = nnx.merge(run.graphdef, run.parameters)(pixels[:, :-1])
    nll = logistic_mixture.negative_log_likelihood(parameters, pixels[:, 1:])
    np.testing.assert_allclose(measured, np.mean(nll) / np.log(2), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.num_outputs": 0}, "config.model.num_outputs is 0"),
        ({"model.num_outputs": 31}, "config.model.num_outputs is 31"),
        ({"model.tied": True}, "config.model.num_outputs is 30; .*tied=False"),
        ({"data.sequence_length": 25}, "config.data.sequence_length is 25; an image of mnist has"),
    ],
)
def test_mistakes_name_the_key(tmp_path, changes, message):
    write_mnist(tmp_path)
    config = mnist.get_config("linear,small")
    config.data.update(path=str(tmp_path), sequence_length=24)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        make_task(config)


def test_learned_positions_reach_every_length():
    config = copying.get_config("linear,small")
    config.model.update(positions="learned", max_positions=40)
    config.data.evaluation_lengths = (41,)
    with pytest.raises(ConfigError, match=r"\(40\) is less than .*evaluation_lengths"):
        make_task(config)


def test_paper_size_has_an_output():
    """The MNIST model at the paper's size, by shape."""
    model = model_of(mnist.get_config("linear"), 256)
    graphdef, parameters = nnx.split(model)
    tokens = jax.ShapeDtypeStruct((16, 783), np.int32)
    out = jax.eval_shape(lambda p, t: nnx.merge(graphdef, p)(t)[0], parameters, tokens)
    assert out.shape == (16, 783, 30)
