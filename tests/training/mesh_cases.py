"""Training on 8 virtual devices gives the losses of one, whatever the axes of the mesh.

`sharding_test.py` runs this where there are 8 devices.
"""

import functools
import itertools
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs.papers.katharopoulos2020 import mnist
from configs.recall import mad, mqar
from linear_transformer.data import sequence_batches
from linear_transformer.data.speech import utterances as speech
from linear_transformer.data.stream import Sequences
from linear_transformer.nn import logical_axes
from linear_transformer.ops import sequence_parallel
from linear_transformer.sharding import placement
from linear_transformer.sharding.mesh import MeshConfig, make_mesh
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.language_modelling import LanguageModelling
from linear_transformer.training import build
from tests import collectives
from tests.configs import katharopoulos2020_test
from tests.layers import slow_except
from tests.tasks import (
    image_classification_test,
    inpainting_test,
    sequence_classification_test,
    speech_recognition_test,
)
from tests.training import runs, shipped_configs_test

STEPS = 3
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
TOLERANCE = 2e-5  # relative, of fp32 losses and norms of gradients: sums in another order
AXES = ("data", "fsdp", "tensor", "sequence")
MECHANISMS = ("softmax", "linear", "gla", "gated_delta_net", "transnormer_t2")
JOINED = ("lru", "flash", "rela")  # a projection's features cross devices that share heads
MESHES = [m for m in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(m) == 8]
SMALL = {
    "data__batch_size": 8,
    "model__width": 64,
    "model__num_heads": 8,
    "model__feed_forward_width": 128,
    "optimizer__name": "adamw",
    "optimizer__learning_rate": 1e-2,
}


@functools.cache
def text():
    return runs.write_text(pathlib.Path(tempfile.mkdtemp()) / "text")


def language(variant, **changes):
    return runs.make_config(text(), variant, **(SMALL | changes))


def masked(**changes):
    """Bidirectional, with padding that the model has to be told of."""
    config = language("linear", **changes)
    for options in config.model.mixers.values():
        options.update(direction="bidirectional", convolution=0)
    config.task = "masked_language_modelling"
    return config


def classification(sequences_per_example=1, **changes):
    made = sequence_classification_test.Made(sequences_per_example)
    sequence_batches.DATASETS[f"made{sequences_per_example}"] = lambda _: made
    return sequence_classification_test.make_config(
        "linear", f"made{sequences_per_example}", data__batch_size=8, **changes
    )


def synthetic(config, **changes):
    config.update(num_steps=STEPS)
    config.data.update(batch_size=8, **changes)
    config.model.update(width=16, num_layers=1, num_heads=2)
    return config


def recall():
    return synthetic(mqar.get_config("linear"))


def compression():
    return synthetic(mad.get_config("compression,linear"), sequence_length=30)


@functools.cache
def written(write):
    folder = pathlib.Path(tempfile.mkdtemp())
    write(folder)
    return folder


def inpainting(**changes):
    folder = written(shipped_configs_test.write_midi)
    return inpainting_test.make_config(folder, model__dropout=0.0, **changes)


def speech_recognition(variant):
    corpus = speech.SpeechCorpus("made", "none", 0, speech_recognition_test.load)
    speech.DATASETS["made"] = lambda _: corpus
    return speech_recognition_test.make_config(variant, data__max_frames=9)


def pixels():
    folder = pathlib.Path(tempfile.mkdtemp())
    katharopoulos2020_test.write_mnist(folder)
    config = mnist.get_config("linear,small")
    config.data.update(path=str(folder), batch_size=8, sequence_length=24)
    config.model.update(width=16, num_layers=1, feed_forward_width=16, num_heads=2, dropout=0.0)
    return config


def images():
    folder = written(shipped_configs_test.write_idx)
    config = image_classification_test.make_config(folder, data__batch_size=8)
    config.model.width = 32
    return config


CONFIGS = {
    **{name: functools.partial(language, name) for name in MECHANISMS},
    **{name: functools.partial(language, name) for name in JOINED},
    # 30 tokens, and documents that begin anywhere.
    "packed": functools.partial(
        language, "gated_delta_net", data__packing="packed", data__sequence_length=30
    ),
    # The state of each row stays on the devices of the row.
    "carried": functools.partial(language, "gated_delta_net", data__packing="carried"),
    "accumulated": functools.partial(
        language, "linear", accumulate_steps=2, model__remat="full", model__scan_layers=True
    ),
    "first values": functools.partial(
        language, "rwkv7", data__packing="packed", model__scan_layers=True
    ),
    "masked": functools.partial(masked, data__sequence_length=30),
    "cls": functools.partial(classification, pooling="cls"),
    "mean": functools.partial(classification, pooling="mean", length=9),
    "last": functools.partial(classification, pooling="last", length=9),
    "batch norm": functools.partial(
        classification,
        length=8,  # the norm counts padding, which other lengths get on some meshes
        model__norm="batchnorm",
        model__scan_layers=True,
        optimizer__name="sgd",  # Adam makes a step of what rounding leaves of a gradient of 0
    ),
    "memory": functools.partial(
        language,
        "gla",
        model__memory_layers=(0,),
        model__memory_keys=8,
        model__memory_top=3,
    ),
    "pairs": functools.partial(classification, sequences_per_example=2, length=9),
    "pairs, cls": functools.partial(classification, sequences_per_example=2, pooling="cls"),
    "recall": recall,
    "compression": compression,
    "speech": functools.partial(speech_recognition, "linear,small"),
    "speech, lstm": functools.partial(speech_recognition, "bilstm,small"),
    "pixels": pixels,
    "inpainting": inpainting,
    # 15 events of 4 tokens.
    "inpainting, odd": functools.partial(inpainting, data__sequence_length=60),
    "inpainting, scanned": functools.partial(
        inpainting, model__decoder_layers=2, model__scan_layers=True, model__remat="full"
    ),
    "images": images,
}


def train(name, mesh, **changes):
    """{metric: its sums and counts at each step}, and the last state."""
    config = CONFIGS[name](**changes)
    config.update(num_steps=STEPS, seed=0, ema_decay=0.0)
    config.mesh = dict(zip(AXES, mesh, strict=True))
    built = build.Experiment(config)
    mesh, task, state, step = built.mesh, built.task, built.init_state(), built.train_step()
    data = iter(task.training_data(0, 1))
    put = functools.partial(placement.put_batch, mesh)
    batches = [put(next(data), task.sequences) for _ in range(STEPS)]
    with jax.set_mesh(mesh):
        compiled = step.lower(state, batches[0]).compile(compiler_options=QUICKLY)
    metrics = []
    for batch in batches:
        state, of_step = compiled(state, batch)
        metrics.append(jax.tree.map(float, of_step))
    return metrics, state


@functools.cache
def single(name):
    return train(name, (1, 1, 1, 1))[0]


def check(name, mesh):
    metrics, state = train(name, mesh)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=TOLERANCE), metrics, single(name)
    )
    return state


QUICK = [
    ("packed", (1, 2, 2, 2)),
    ("accumulated", (1, 2, 2, 2)),
    ("recall", (1, 1, 1, 8)),
]


@pytest.mark.parametrize(("name", "mesh"), QUICK)
def test_some_meshes(name, mesh):
    leaves = jax.tree.leaves(check(name, mesh))
    whole, held = (sum(sizes) for sizes in zip(*map(bytes_of, leaves), strict=True))
    _, fsdp, tensor, _ = mesh
    assert held < 1.5 * whole / (fsdp * tensor)  # small parameters are whole


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 1, 1, 1), (1, 2, 1, 2)])
def test_statistics_of_two_devices_are_those_of_two_parts(mesh):
    """A device norms its own rows, as an accumulated part of a batch is normed by itself."""
    metrics, state = train("batch norm", mesh)
    expected_metrics, expected = train("batch norm", (1, 1, 1, 1), accumulate_steps=2)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=TOLERANCE),
        (metrics, state.statistics),
        (expected_metrics, expected.statistics),
    )


def bytes_of(x):
    """Of the array, and of what a device holds of it."""
    return x.nbytes, x.addressable_shards[0].data.nbytes


def test_rows_lie_where_the_mesh_says():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, sequence=2), 8)
    tokens = np.arange(8 * 6).reshape(8, 6)
    names = ("inputs", "targets")
    batch = placement.put_batch(mesh, dict.fromkeys(names, tokens), Sequences(names))
    for x in batch.values():
        for shard in x.addressable_shards:
            assert shard.data.shape == (2, 3)
            np.testing.assert_array_equal(shard.data, tokens[shard.index])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", MECHANISMS)
def test_all_meshes(name, mesh):
    check(name, mesh)


TASKS = [name for name in CONFIGS if name not in MECHANISMS]
# The masks of a row are drawn with a key of its part of the rows, so all rows are in one part.
MESHES_OF_TASKS = dict.fromkeys(TASKS, ((1, 1, 1, 8), (1, 2, 2, 2), (2, 1, 1, 4))) | {
    **dict.fromkeys(JOINED, ((1, 2, 4, 1),)),
    "carried": ((8, 1, 1, 1), (2, 2, 2, 1)),
    "masked": ((1, 1, 1, 8), (1, 1, 2, 4)),
    "batch norm": ((1, 1, 1, 8), (1, 1, 2, 4)),  # rows are normed with those of their device
    "memory": ((1, 1, 1, 8), (1, 1, 2, 4)),  # likewise
    "inpainting": ((8, 1, 1, 1), (1, 4, 2, 1), (2, 1, 1, 4)),
    "inpainting, scanned": ((2, 4, 1, 1),),
    "images": ((8, 1, 1, 1), (2, 4, 1, 1)),  # no sequences
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"), [(name, mesh) for name in TASKS for mesh in MESHES_OF_TASKS[name]], ids=str
)
def test_all_tasks(name, mesh):
    check(name, mesh)


def evaluated(name, mesh, split="validation"):
    """Metrics of a new model, and the FLOPs of a batch on each device; AXES as of `train`."""
    config = CONFIGS[name]()
    config.mesh = dict(zip(AXES, mesh, strict=True))
    built = build.Experiment(config)
    task, graphdef, parameters = built.task, built.graphdef, built.init_state().evaluated
    metrics = built.evaluate(parameters, split)
    assert built.metric_names() == list(metrics)
    with jax.set_mesh(built.mesh):
        if isinstance(task, LanguageModelling):
            carried = task.evaluate_stateful(graphdef, parameters, split)
            metrics |= {f"stateful_{key}": value for key, value in carried.items()}
        batch = evaluation.put(next(task.evaluation_batches(split)), task.sequences)
        program = task.forward.lower(task, graphdef, parameters, batch)
        flops = program.compile(compiler_options=QUICKLY).cost_analysis()["flops"]
    # The exponential of a mean multiplies its rounding.
    return {k: math.log(v) if "perplexity" in k else v for k, v in metrics.items()}, flops


def check_evaluation(name, mesh):
    (metrics, part), (expected, whole) = (evaluated(name, m) for m in (mesh, (1, 1, 1, 1)))
    assert metrics == pytest.approx(expected, rel=1e-6)
    return part / whole


@pytest.mark.parametrize(
    ("name", "mesh"),
    slow_except((("linear", (4, 2, 1, 1)),), (("linear", (4, 2, 1, 1)), ("mean", (8, 1, 1, 1)))),
)
def test_devices_share_an_evaluation(name, mesh):
    """Every example counts once, and each device computes an eighth."""
    assert check_evaluation(name, mesh) == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TASKS, *MECHANISMS])
def test_devices_share_all_evaluations(name):
    whole_rows = name in ("images", "carried")
    check_evaluation(name, (4, 2, 1, 1) if whole_rows else (2, 2, 1, 2))


def test_named_activations():
    """Split as the rules say, over what the compiler splits and where the devices divide it."""
    mesh = make_mesh(MeshConfig(data=2, tensor=4), 2)

    def name(x):
        return logical_axes.named(x, "rows", "time", "heads", None)

    def spec(shape, function):
        with jax.set_mesh(mesh):
            return jax.jit(function)(jnp.zeros(shape)).sharding.spec

    P = PartitionSpec
    assert spec((2, 3, 8, 5), name) == P("data", None, "tensor")
    assert spec((2, 3, 6, 5), name) == P("data")  # 4 devices do not share 6 heads
    rows = jax.shard_map(
        name, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
    )
    assert spec((2, 3, 8, 5), rows) == P("data", None, "tensor")
    x = jnp.ones((2, 3, 8, 5))
    assert name(x) is x  # without a mesh


@pytest.mark.slow
def test_a_broken_exchange_fails(monkeypatch):
    monkeypatch.setattr(sequence_parallel, "_sent", lambda x, distance: jnp.zeros_like(x))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check("linear", (1, 1, 1, 2))


def messages(length, num_layers):
    """Of the compiled step on a row over 8 devices, of a model with scalar decays."""
    config = language(
        "retnet",
        data__batch_size=1,
        data__sequence_length=length,
        model__num_layers=num_layers,
        model__positions="none",
    )
    config.model.mixers.update({"retnet": {"normalize": False}})
    config.update(num_steps=STEPS, seed=0, ema_decay=0.0)
    config.mesh = {"data": 1, "sequence": 8}
    built = build.Experiment(config)
    mesh, task, state, step = built.mesh, built.task, built.init_state(), built.train_step()
    rows = {name: np.zeros((1, length), np.int32) for name in ("inputs", "targets")}
    rows["weights"] = np.ones((1, length), np.float32)
    batch = placement.abstract_batch(mesh, rows, task.sequences)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, batch).compile(compiler_options=QUICKLY)
    return collectives.messages(compiled.as_text())


@pytest.mark.slow
def test_messages_of_a_layer_do_not_grow_with_the_row():
    """One state forward and one back through 1 + log2(8) shards, at 8k as at 64k tokens."""
    one, two, longer = messages(2**13, 1), messages(2**13, 2), messages(2**16, 2)
    assert two == longer
    kind = "collective-permute"
    counts = [[k for k, _ in found].count(kind) for found in (one, two)]
    assert counts == [2 * (1 + 3), 2 * 2 * (1 + 3)]
    sizes = {size for k, size in two if k == kind}
    keys, values = 8, 16  # of a head; fp32, with one more column for the decay
    assert max(sizes) == 4 * 8 * keys * (values + 1)
