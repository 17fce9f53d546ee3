"""A run that was stopped, in whatever way, ends exactly like one that was not."""

import pathlib
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from etils import epath

from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.training import config_file, experiment, loop
from tests.layers import slow_except
from tests.training import runs

VARIATIONS = {
    "everything": {
        "model__dropout": 0.1,
        "ema_decay": 0.9,
        "accumulate_steps": 2,
        "data__packing": "packed",
    },
    "dropout": {"model__dropout": 0.2},
    "average": {"ema_decay": 0.9},
    "accumulation": {"accumulate_steps": 4},
    "packed": {"data__packing": "packed"},
    "smoothing, radam, softmax": {
        "label_smoothing": 0.1,
        "optimizer__name": "radam",
        "optimizer__weight_decay": 0.0,
        "variant": "softmax",
    },
}


def assert_same_run(workdir, state, expected_workdir, expected_state):
    runs.assert_same_state(state, expected_state)
    assert runs.curve(workdir) == runs.curve(expected_workdir)


def run_in_parts(config, workdir, *parts):
    """Stops at each of the steps, as a killed run does, and goes on to the end."""
    for stop in parts:
        config.num_steps, whole = stop, config.num_steps
        runs.run(config, workdir)
        config.num_steps = whole
    return runs.run(config, workdir)


@pytest.mark.slow
def test_extended_run_is_the_unbroken_one(unbroken, tmp_path):
    config, workdir, state = unbroken
    # 6 and 9 end a log window, where the shorter run's last record is the longer one's too.
    extended = run_in_parts(runs.make_config(config.data.path), tmp_path / "run", 6, 9)
    assert_same_run(tmp_path / "run", extended, workdir, state)
    assert [r["step"] for r in runs.curve(workdir)] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    "name",
    slow_except(["everything"], VARIATIONS),
)
def test_resume_of_everything_that_has_state(name, text, tmp_path):
    config = runs.make_config(text, eval_every=100, **VARIATIONS[name])
    expected = runs.run(config, tmp_path / "unbroken")
    state = run_in_parts(config, tmp_path / "parts", 6)
    assert_same_run(tmp_path / "parts", state, tmp_path / "unbroken", expected)


def test_a_different_seed_is_a_different_run(unbroken, tmp_path):
    """Negative control of the comparison."""
    config, workdir, state = unbroken
    other = runs.run(runs.make_config(config.data.path, seed=1), tmp_path / "run")
    with pytest.raises(AssertionError):
        runs.assert_same_state(other, state)
    assert runs.curve(tmp_path / "run") != runs.curve(workdir)


def test_stop_in_the_middle_of_a_log_window(unbroken, tmp_path, monkeypatch):
    """An exception between a checkpoint and the next log line loses nothing that was logged."""
    config, workdir, state = unbroken
    collect, seen = loop._Loop._collect, []

    def fail_once(self, step, metrics):
        if step == 8 and not seen:
            seen.append(step)
            raise KeyboardInterrupt
        collect(self, step, metrics)

    monkeypatch.setattr(loop._Loop, "_collect", fail_once)
    with pytest.raises(KeyboardInterrupt):
        runs.run(config, tmp_path / "run")
    assert runs.steps(tmp_path / "run")[-1] == 6
    resumed = runs.run(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", resumed, workdir, state)


def test_finished_run_only_reports_again(unbroken, tmp_path):
    """The same command after the end trains nothing and leaves no line twice."""
    config, workdir, state = unbroken
    shutil.copytree(workdir, tmp_path / "run")
    config = runs.make_config(config.data.path, final_evaluation=True)
    for _ in range(2):
        again = runs.run(config, tmp_path / "run")
        assert_same_run(tmp_path / "run", again, workdir, state)
    keys = [(r["step"], r["split"]) for r in runs.records(tmp_path / "run")]
    assert len(keys) == len(set(keys))
    assert (12, "validation") in keys


def test_fewer_steps_than_done_is_refused(unbroken, tmp_path):
    config, workdir, _ = unbroken
    shutil.copytree(workdir, tmp_path / "run")
    shorter = runs.make_config(config.data.path, num_steps=8)
    with pytest.raises(ConfigError, match=r"config\.num_steps is 8.* step 12"):
        runs.run(shorter, tmp_path / "run")


def test_interrupted_write_of_the_config_can_be_resumed(unbroken, tmp_path):
    """config.json is replaced whole: what a killed write leaves beside it is ignored."""
    config, workdir, state = unbroken
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "config.json.part").write_text('{"seed')
    assert_same_run(tmp_path / "run", runs.run(config, tmp_path / "run"), workdir, state)
    loaded = config_file.load(epath.Path(tmp_path / "run"))
    assert configuration.plain(loaded) == configuration.plain(experiment.resolve(config))


# With processes.


def final(workdir: pathlib.Path, config):
    """The last state in a folder, restored by a run that has nothing left to do."""
    assert runs.steps(workdir)[-1] == config.num_steps
    return runs.run(config, workdir)


def wait_for(process, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.01)


def long_config(text):
    """Long enough that a signal after the first log line finds the run at work."""
    return runs.make_config(text, num_steps=400, log_every=10, eval_every=100, checkpoint_every=100)


@pytest.fixture(scope="module")
def long_unbroken(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("long") / "run"
    return long_config(text), workdir, runs.run(long_config(text), workdir)


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def test_sigterm_saves_and_exits_0(long_unbroken, tmp_path):
    config, workdir, state = long_unbroken
    process = runs.start(runs.arguments(config, tmp_path))
    wait_for(process, lambda: logged(tmp_path))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    stopped = runs.steps(tmp_path)[-1]
    assert f"SIGTERM: saved step {stopped}" in out
    assert 10 <= stopped < config.num_steps
    finished = runs.execute(runs.arguments(config, tmp_path))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert f"step {stopped} of 400" in finished.stdout
    assert_same_run(tmp_path, final(tmp_path, config), workdir, state)


def test_kill_once(long_unbroken, tmp_path):
    config, workdir, state = long_unbroken
    process = runs.fork(runs.arguments(config, tmp_path))
    wait_for(process, lambda: (tmp_path / "checkpoints" / "100").exists())
    process.kill()
    process.communicate(timeout=60)
    assert runs.steps(tmp_path)[-1] < config.num_steps
    assert runs.execute(runs.arguments(config, tmp_path)).returncode == 0
    assert_same_run(tmp_path, final(tmp_path, config), workdir, state)


def kill_until_done(config, workdir, kills: int, seed: int) -> dict[str, int]:
    """Runs train.py, kills it at random moments, and restarts it until it is done.

    A third of the kills come at any moment after the start (imports, compilation), a third while
    a checkpoint is being written, a third a random time after the first step of this start.

    Returns:
      How many kills of each kind there were, and the number of restarts that got new steps done.
    """
    rng = random.Random(seed)
    counts = {"any": 0, "writing": 0, "training": 0, "progress": 0}
    checkpoints = workdir / "checkpoints"

    def newest():
        return max(runs.steps(workdir), default=0) if checkpoints.exists() else 0

    def writing():  # Orbax writes to a folder of a temporary name first
        folders = checkpoints.iterdir() if checkpoints.exists() else ()
        return any(not f.name.isdigit() for f in folders)

    while sum(counts[kind] for kind in ("any", "writing", "training")) < kills:
        kind = ("any", "writing", "training")[rng.randrange(3)]
        before = newest()
        process = runs.fork(runs.arguments(config, workdir))
        if kind == "any":
            time.sleep(rng.uniform(0.2, 5))
        elif kind == "writing":
            for _ in range(rng.randint(1, 3)):
                wait_for(process, lambda: not writing())
                wait_for(process, writing)
            time.sleep(rng.uniform(0, 0.02))
        else:
            wait_for(process, lambda before=before: newest() > before)
            time.sleep(rng.uniform(0, 2))
        process.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), err
        assert "Traceback" not in err, err
        counts[kind] += process.returncode != 0
        counts["progress"] += newest() > before
        if process.returncode == 0:
            raise AssertionError(f"done after {counts}; the config is too short for {kills} kills")
    return counts


@pytest.mark.slow
def test_twenty_kills(text, tmp_path):
    config = runs.make_config(
        text,
        num_steps=6000,
        log_every=7,
        eval_every=500,
        checkpoint_every=5,
        model__dropout=0.1,
        ema_decay=0.99,
        accumulate_steps=2,
        data__packing="packed",
    )
    counts = kill_until_done(config, tmp_path / "killed", kills=20, seed=0)
    print("kills:", counts)
    assert counts["progress"] >= 5
    config.num_steps = 5 * (runs.steps(tmp_path / "killed")[-1] // 5 + 1)
    assert runs.execute(runs.arguments(config, tmp_path / "killed")).returncode == 0
    expected = runs.run(config, tmp_path / "unbroken")
    state = final(tmp_path / "killed", config)
    assert_same_run(tmp_path / "killed", state, tmp_path / "unbroken", expected)
    for leaf in jax.tree.leaves(state):
        assert np.all(np.isfinite(leaf))
