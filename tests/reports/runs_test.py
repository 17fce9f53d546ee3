"""Which runs and benchmarks are found, and which experiment a run is of."""

import json

import pytest

from linear_transformer.errors import ConfigError
from linear_transformer.reports.runs import find
from linear_transformer.reports.tables import Experiment
from tests.reports import folders

PAPER = folders.TABLE.rows[0].paper
REDUCED = folders.TABLE.rows[0].reduced
OWN = Experiment("configs/lra/text.py:linear", files={"data.path": "imdb"})


def is_of(folder, experiment):
    return len(find([folder]).of(experiment)) == 1


def test_a_run_is_of_its_experiment_only(tmp_path):
    """Whatever reports and paths are; any other difference is another experiment."""
    unimportant = {"seed": 7, "log_every": 3, "eval_every": 9, "sample": True}
    folders.write_run(tmp_path / "deep" / "er" / "a", PAPER, **unimportant)
    assert is_of(tmp_path, PAPER)
    assert not is_of(tmp_path, REDUCED)
    folders.write_run(tmp_path / "path", PAPER)
    path = tmp_path / "path" / "config.json"
    config = json.loads(path.read_text())
    config["sample"] = True
    path.write_text(json.dumps(config))
    assert is_of(tmp_path / "path", PAPER)
    others = {"optimizer__learning_rate": 2e-3, "num_steps": 41, "task": "x"}
    others["stop_when"] = "accuracy >= 0.5"  # such a run may end before the experiment does
    for key, value in others.items():
        folders.write_run(tmp_path / key, PAPER, **{key: value})
        assert not is_of(tmp_path / key, PAPER), key


def test_files_are_the_users(tmp_path):
    folders.write_run(tmp_path / "without", OWN)
    folders.write_run(tmp_path / "with", OWN, data__path="/data/aclImdb")
    assert not is_of(tmp_path / "without", OWN)
    assert is_of(tmp_path / "with", OWN)


def test_values_are_of_the_last_step(tmp_path):
    folders.write_run(tmp_path / "done", PAPER, {"loss": 0.5}, test={"accuracy": 0.9})
    folders.write_run(tmp_path / "stopped", PAPER, {"loss": 0.4}, step=20)
    found = {run.folder.name: run for run in find([tmp_path]).runs}
    done, stopped = found["done"], found["stopped"]
    assert (done.finished, stopped.finished) == (True, False)
    assert done.value("validation", "loss") == (0.5, False)
    assert done.value("test", "accuracy") == (0.9, True)
    assert done.value("test", "loss") is None
    assert done.value("validation", "accuracy") is None  # that of an earlier step only
    assert done.value("train", "steps_per_second") is None
    assert done.seconds == 20 / 2 + 20 / 4
    record = {"step": folders.STEPS - 1, "metrics": {"accuracy": 0.1}}
    for run in (done, stopped):
        (run.folder / "eval-test.json").write_text(json.dumps(record))
    assert done.value("test", "accuracy") is None
    assert stopped.value("test", "accuracy") == (0.1, True)  # of a checkpoint after the last record
    for damage in ("{", "[" * 10**5):
        (done.folder / "eval-test.json").write_text(damage)
        with pytest.raises(ConfigError, match=r"eval-test\.json: not an evaluation"):
            done.value("test", "accuracy")


def test_the_command_makes_the_run(tmp_path):
    folders.write_run(tmp_path / "a", PAPER, seed=7, data__batch_size=64)
    [run] = find([tmp_path]).runs
    command = run.command(find([tmp_path]).config(PAPER), PAPER)
    assert command.startswith(
        "python train.py --config=configs/papers/katharopoulos2020/copying.py"
    )
    assert command.endswith(f"--config.num_steps=40 --config.seed=7 --workdir={tmp_path}/a")
    assert run.made() == "2023-11-14 22:13 UTC"
    where = {
        "hardware": {"devices": "4 x TPU v5 lite", "cores": 8, "cpu": "a CPU"},
        "commit": "abc1234",
        "uncommitted_changes": True,
        "date": "of the start",
    }
    (tmp_path / "a" / "environment.json").write_text(json.dumps(where))
    [run] = find([tmp_path]).runs
    expected = "2023-11-14 22:13 UTC, 4 x TPU v5 lite, 8 cores a CPU, commit abc1234 with changes"
    assert run.made() == expected


def test_what_is_not_a_run_is_left_out(tmp_path):
    """A folder is found once, however often it is below one of the folders."""
    folders.write_run(tmp_path / "a", PAPER)
    folders.write_run(tmp_path / "a" / "checkpoints" / "b", PAPER)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 10**5)
    folders.write_benchmark(tmp_path / "x" / "b.json", size="paper size", date="", linear=(1, 2))
    found = find([tmp_path, tmp_path / "a", tmp_path / "none"])
    assert [run.folder for run in found.runs] == [tmp_path / "a"]
    assert [file.path.name for file in found.benchmarks] == ["b.json"]


def test_a_damaged_run_is_named(tmp_path):
    folders.write_run(tmp_path / "a", PAPER)
    deep = "[" * 10**5
    (tmp_path / "a" / "metrics.jsonl").write_text(deep)
    assert find([tmp_path]).runs[0].records == []
    (tmp_path / "a" / "environment.json").write_text(deep)
    with pytest.raises(ConfigError, match=r"a/environment\.json: not JSON"):
        find([tmp_path])
    (tmp_path / "a" / "environment.json").unlink()
    for damage in ("{", deep):
        (tmp_path / "a" / "config.json").write_text(damage)
        with pytest.raises(ConfigError, match=r"a/config\.json: not a config"):
            find([tmp_path])
