"""The loop: it learns, it stops when it must, and what it leaves in the run's folder."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from tensorboardX.proto import event_pb2

from linear_transformer.config import configuration, schema
from linear_transformer.errors import ConfigError
from linear_transformer.inference.evaluation import Run
from linear_transformer.reports.runs import Run as FoundRun
from linear_transformer.runtime import accelerators
from linear_transformer.training import build, config_file, experiment, loop
from linear_transformer.training.metrics import MetricWriter, read_metrics
from tests.training import runs


@pytest.mark.parametrize("variant", ["linear", pytest.param("softmax", marks=pytest.mark.slow)])
def test_learns(variant, tmp_path):
    """A line that repeats can be known by heart: 5.5 nats a byte at first, under 0.5 at the end."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    config = runs.make_config(
        tmp_path / "text.txt",
        variant,
        num_steps=150,
        log_every=10,
        eval_every=1000,
        checkpoint_every=1000,
        optimizer__learning_rate=1e-2,
        optimizer__warmup_steps=10,
        model__width=32,
        data__batch_size=8,
        final_evaluation=True,
    )
    runs.run(config, tmp_path / "run")
    losses = [record["loss"] for record in runs.curve(tmp_path / "run")]
    assert losses[0] > 2.5
    assert losses[-1] < 0.5
    # The windows of the evaluation start anywhere, and their first few bytes can't be known.
    assert runs.curve(tmp_path / "run", "validation")[-1]["bits_per_byte"] < 1.5


def test_utilization_of_known_devices(text, unbroken, tmp_path, monkeypatch, capsys):
    """MFU is what the model needs, three forward passes, over the peak of all devices."""
    assert all("mfu" not in record for record in runs.records(unbroken[1]))  # of an unknown one
    config = runs.make_config(text, num_steps=3)
    peak = 1e9
    known = accelerators.Accelerator("known", peak, 1, 1.0)
    monkeypatch.setattr(accelerators, "find", lambda kind: known)
    runs.run(config, tmp_path / "known")
    assert "MFU" in capsys.readouterr().out
    model = build.make_task(config).make_model(nnx.Rngs(0))
    needed = 3 * model.flops_per_token(config.data.sequence_length)
    found = [r for r in runs.records(tmp_path / "known") if r["split"] == "train"]
    assert found
    for record in found:
        assert record["mfu"] == pytest.approx(record["tokens_per_second"] * needed / peak)


def state_is_finite(workdir):
    run = Run.load(epath.Path(workdir))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(run.parameters))
    return run.step


def test_non_finite_loss_names_the_step(text, tmp_path, monkeypatch):
    """The loss of step 6 is not a number: the last checkpoint is that of step 4."""
    make = build.make_train_step

    def make_broken(*args, **options):
        step = make(*args, **options)

        def broken(state, batch):
            number = int(state.step)
            state, metrics = step(state, batch)
            if number == 5:
                metrics["loss"] = (jnp.nan, metrics["loss"][1])
            return state, metrics

        return broken

    monkeypatch.setattr(build, "make_train_step", make_broken)
    with pytest.raises(loop.NonFiniteLossError, match="loss is nan at step 6;"):
        runs.run(runs.make_config(text), tmp_path / "run")
    assert state_is_finite(tmp_path / "run") == 4
    assert [r["step"] for r in runs.curve(tmp_path / "run")] == [3]


def test_parameters_that_overflow_are_not_saved(text, tmp_path):
    """An update can overflow while loss and gradient of its step are finite."""
    config = runs.make_config(
        text,
        checkpoint_every=1,
        optimizer__learning_rate=3e38,
        optimizer__weight_decay=100.0,
        optimizer__warmup_steps=0,
    )
    with pytest.raises(loop.NonFiniteLossError, match="parameter is not finite after step 1"):
        runs.run(config, tmp_path / "run")
    assert runs.steps(tmp_path / "run") == []


def test_divergence_on_the_command_line(text, tmp_path):
    """One line, no traceback, and neither success nor a user's mistake."""
    config = runs.make_config(text, checkpoint_every=1, num_steps=50)
    config.optimizer.learning_rate = 1e30
    config.optimizer.clip_norm = 0.0
    result = runs.execute(runs.arguments(config, tmp_path / "run"))
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert " step " in line
    assert state_is_finite(tmp_path / "run") >= 1


def test_config_is_saved_with_the_run(unbroken):
    config, workdir, _ = unbroken
    loaded = config_file.load(epath.Path(workdir))
    assert configuration.plain(loaded) == configuration.plain(experiment.resolve(config))
    assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 16
    made = json.loads((workdir / "environment.json").read_text())
    assert made["hardware"]["devices"].endswith("cpu")
    assert made["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 5),
        ("data.batch_size", 8),
        ("model.pattern", ("softmax",)),
        ("optimizer.options", {"beta": 0.9}),
    ],
)
def test_another_config_in_the_same_folder_is_refused(key, value, unbroken):
    config, workdir, _ = unbroken
    before = (workdir / "config.json").read_text()
    other = runs.make_config(config.data.path, **{key: value})
    with pytest.raises(ConfigError, match=rf"{workdir}.*{key}.*for a new run, add --workdir="):
        runs.run(other, workdir)
    assert (workdir / "config.json").read_text() == before


COUNTS = [k for k, r in experiment.ExperimentConfig.RANGES.items() if r == schema.POSITIVE]


@pytest.mark.parametrize("key", COUNTS)
def test_counts_are_positive(key, text, tmp_path):
    with pytest.raises(ConfigError, match=rf"config\.{key} is 0; it must be positive"):
        runs.run(runs.make_config(text, **{key: 0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_must_divide_into_parts(text, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.data\.batch_size \(4\).*accumulate_steps"):
        runs.run(runs.make_config(text, accumulate_steps=3), tmp_path / "run")


def test_log_averages_over_its_window(unbroken, tmp_path):
    """Every step is in exactly one record: windows of 3 are the means of windows of 1.

    Up to the few batches with a border of two documents, whose 127 tokens of 128 count.
    """
    config, workdir, _ = unbroken
    runs.run(runs.make_config(config.data.path, log_every=1), tmp_path / "run")
    single = [record["loss"] for record in runs.curve(tmp_path / "run")]
    means = [np.mean(single[i : i + 3]) for i in range(0, 12, 3)]
    assert [r["loss"] for r in runs.curve(workdir)] == pytest.approx(means, rel=1e-3)
    for record in runs.curve(workdir):
        assert record["bits_per_byte"] == pytest.approx(record["loss"] / math.log(2), rel=1e-6)
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]), rel=1e-6)


def test_log_has_the_learning_rate_of_its_step(text, tmp_path):
    """The first step has the rate after none, so two steps of warm-up begin at 0."""
    config = runs.make_config(
        text, num_steps=4, log_every=1, optimizer__learning_rate=0.5, optimizer__warmup_steps=2
    )
    runs.run(config, tmp_path / "run")
    rates = [record["learning_rate"] for record in runs.curve(tmp_path / "run")]
    assert rates == [0, 0.25, 0.5, 0.5]


def test_evaluations_come_at_their_steps(unbroken):
    _, workdir, _ = unbroken
    evaluations = runs.curve(workdir, "validation")
    assert [record["step"] for record in evaluations] == [4, 8]
    assert all(record["tokens"] == 2 * 4 * 32 for record in evaluations)  # eval_batches = 2


# Files.


def test_partial_last_line_is_dropped(tmp_path):
    """A kill in the middle of a write leaves half a line; a resume leaves no trace of it."""
    folder = epath.Path(tmp_path)
    writer = MetricWriter(folder, 0)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": 1.0 / step})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    for cut in (1, 10, len(whole) // 4):
        path.write_text(whole[:-cut])
        assert [r["step"] for r in read_metrics(folder)] == ([1, 2, 3] if cut == 1 else [1, 2])
    writer = MetricWriter(folder, 2)
    writer.write(3, "train", {"loss": 0.5})
    writer.close()
    records = runs.records(tmp_path)
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_steps_that_will_be_repeated_are_dropped(tmp_path):
    folder = epath.Path(tmp_path)
    writer = MetricWriter(folder, 0)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": 1.0})
        writer.write(step, "validation", {"loss": 2.0})
    writer.close()
    writer = MetricWriter(folder, 2)
    writer.write(2, "validation", {"loss": 3.0})  # again, as the end of a finished run does
    writer.write(3, "train", {"loss": 4.0})
    writer.close()
    kept = [(r["step"], r["split"], r["loss"]) for r in runs.records(tmp_path)]
    assert kept == [
        (1, "train", 1.0),
        (1, "validation", 2.0),
        (2, "train", 1.0),
        (2, "validation", 3.0),
        (3, "train", 4.0),
    ]


def events(folder):
    """Scalars of TensorBoard files: a record is a length, its CRC, the event, and its CRC."""
    found = {}
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + length :]
    return found


def test_tensorboard_has_the_same_numbers(unbroken):
    _, workdir, _ = unbroken
    scalars = events(workdir / "tensorboard")
    for split in ("train", "validation"):
        for record in runs.curve(workdir, split):
            for name in ("bits_per_byte", "perplexity"):
                found = scalars[f"{split}/{name}", record["step"]]
                assert found == pytest.approx(record[name], rel=1e-6)


def test_picture(unbroken):
    """A PNG with a curve in it: more than a few colours of pixels."""
    import matplotlib.image

    _, workdir, _ = unbroken
    path = workdir / "loss.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (480, 720)
    assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 10


def test_a_run_is_complete_when_a_metric_is_reached(text, tmp_path):
    """Also when it is started again; without the condition it goes on."""
    workdir = tmp_path / "run"

    def steps(condition):
        config = runs.make_config(text, stop_when=condition, final_evaluation=True)
        return int(runs.run(config, workdir).step)

    assert steps("bits_per_byte <= 100") == 4  # the first evaluation
    assert steps("bits_per_byte <= 100") == 4
    assert FoundRun.read(workdir).finished
    assert read_metrics(epath.Path(workdir))[-1]["stop_when bits_per_byte <= 100"] == 1.0
    assert steps("bits_per_byte <= 0.1") == 12
    assert not any("stop_when" in name for name in read_metrics(epath.Path(workdir))[-1])


@pytest.mark.parametrize(
    "condition", ["accuracy", "accuracy > 0.5", "accuracy >= half", "accuracy >= 1.2.3", ">= 1"]
)
def test_what_is_no_condition(condition, text):
    with pytest.raises(ConfigError, match=r"config.stop_when is .*; write METRIC >= VALUE"):
        experiment.resolve(runs.make_config(text, stop_when=condition))


def test_a_condition_on_an_unknown_metric(text, tmp_path):
    config = runs.make_config(text, stop_when="accuracy >= 0.5")
    with pytest.raises(ConfigError, match=r"names 'accuracy'; an evaluation has bits_per_byte"):
        runs.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing was compiled either
