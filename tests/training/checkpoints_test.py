"""Damaged checkpoints: the one before is used, and nothing that is good is lost."""

import gc
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from etils import epath

from linear_transformer.data.io.reading import files_below
from linear_transformer.errors import ConfigError
from linear_transformer.training import checkpoints as module
from linear_transformer.training.checkpoints import Checkpoints
from linear_transformer.training.state import TrainState
from tests.training import runs


def make_state(step: int) -> TrainState:
    a, b = jax.random.split(jax.random.key(step))
    parameters = {"kernel": jax.random.normal(a, (64, 64)), "scale": jax.random.normal(b, ())}
    return TrainState(jnp.int32(step), parameters, (jnp.zeros(3),), None, {})


def progress_of(step: int) -> dict:
    """What a loop saves: big integers, doubles that fp32 can't hold, empty and nested parts."""
    data = {"index": 2**40 + step, "nested": {"none": None, "list": [1, 2]}, "name": "x"}
    return {"step": step, "sums": {"loss": [0.1 + step, 3.0]} if step % 4 else {}, "data": data}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(epath.Path(workdir), 3)
    for step in (2, 4, 6):
        checkpoints.save(step, make_state(step), progress_of(step))
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def warnings(monkeypatch):
    """What is logged about checkpoints that are passed over."""
    lines = []

    def warning(text, *values):
        if "trying the one before" in text:
            lines.append(text % values)

    monkeypatch.setattr(logging, "warning", warning)
    return lines


def restore(workdir):
    checkpoints = Checkpoints(epath.Path(workdir), 3)
    try:
        return checkpoints.restore(make_state(0))
    finally:
        checkpoints.close()


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def kinds_of_files(folder):
    """One file of each kind; those with names of their own in the folders `d`."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    return {f.relative_to(folder).parent if f.parent.name == "d" else f.name: f for f in files}


def test_round_trip_is_exact(saved, warnings):
    state, progress = restore(saved)
    runs.assert_same_state(state, make_state(6))
    assert progress == progress_of(6)
    assert not warnings


def test_no_checkpoint_is_no_error(tmp_path):
    assert restore(tmp_path) is None


@pytest.mark.parametrize("damage", [delete, truncate, garble, flip_a_bit])
def test_any_damage_to_any_file_is_noticed(damage, workdir, warnings):
    whole = workdir / "checkpoints" / "6"
    names = kinds_of_files(whole)
    assert len(names) > 8
    shutil.copytree(whole, workdir / "copy")
    for name, path in names.items():
        warnings.clear()
        damage(path)
        state, progress = restore(workdir)
        runs.assert_same_state(state, make_state(4))
        assert progress == progress_of(4), name
        assert len(warnings) == 1, name
        assert "checkpoint of step 6 cannot be read" in warnings[0]
        shutil.rmtree(whole)
        shutil.copytree(workdir / "copy", whole)
    runs.assert_same_state(restore(workdir)[0], make_state(6))


def test_a_checkpoint_without_the_statistics_of_the_model_is_refused(workdir, warnings):
    state = make_state(6)._replace(statistics={"norm": {"moments": jnp.zeros(6)}})
    for read in (Checkpoints.restore, Checkpoints.restore_evaluated):
        checkpoints = Checkpoints(epath.Path(workdir), 3)
        with pytest.raises(ConfigError, match="no checkpoint can be read"):
            read(checkpoints, state)
        checkpoints.close()
    assert len(warnings) == 6
    assert all("'statistics']) for loading were not found" in line for line in warnings)


@pytest.mark.parametrize("averaged", [False, True])
def test_evaluation_reads_parameters_and_statistics_alone(
    averaged, tmp_path, monkeypatch, warnings
):
    """What the optimizer has in the checkpoint is overwritten, and nobody notices."""
    monkeypatch.setattr(module, "_verify", lambda folder: None)
    optimizer = jax.random.bits(jax.random.key(0), (2**18,))  # which does not compress
    state = make_state(6)._replace(
        optimizer=optimizer,
        average=make_state(7).parameters,
        statistics={"norm": {"moments": jnp.arange(6.0)}},
    )
    checkpoints = Checkpoints(epath.Path(tmp_path), 1)
    checkpoints.save(6, state, progress_of(6))
    known, overwritten = np.asarray(optimizer).tobytes()[2**19 + 1000 :][:64], 0
    for path in files_below(epath.Path(tmp_path)):
        content = path.read_bytes()
        place = content.find(known)
        if place >= 0:
            path.write_bytes(content[:place] + bytes(2**18) + content[place + 2**18 :])
            overwritten += 1
    assert overwritten == 1
    asked = state if averaged else state._replace(average=None)
    evaluated, step = checkpoints.restore_evaluated(asked)
    expected = (state.average if averaged else state.parameters) | state.statistics
    jax.tree.map(np.testing.assert_array_equal, evaluated, expected)
    assert step == 6
    # Orbax leaves its other reads unfinished, and Python reports each where it is collected.
    monkeypatch.setattr(sys, "unraisablehook", lambda unfinished: None)
    with pytest.raises(ConfigError, match="no checkpoint can be read"):
        checkpoints.restore(state)
    checkpoints.close()
    gc.collect()


def test_all_damaged_is_an_error_and_deletes_nothing(workdir, warnings):
    for folder in (workdir / "checkpoints").iterdir():
        truncate(folder / "state" / "_METADATA")
    files = sorted(workdir.rglob("*"))
    with pytest.raises(ConfigError, match=r"checkpoints: no checkpoint can be read"):
        restore(workdir)
    assert len(warnings) == 3
    assert sorted(workdir.rglob("*")) == files


@pytest.mark.parametrize("step", [3, 6], ids=["before the damaged step", "at the damaged step"])
def test_damaged_checkpoints_do_not_crowd_out_good_ones(step, workdir, warnings):
    """Two of the three kept are damaged; a new one must neither be hindered nor dropped."""
    for damaged in (4, 6):
        truncate(workdir / "checkpoints" / str(damaged) / "state" / "_METADATA")
    checkpoints = Checkpoints(epath.Path(workdir), 2)
    assert checkpoints.restore(make_state(0))[1]["step"] == 2
    checkpoints.save(step, make_state(step), progress_of(step))
    checkpoints.close()
    assert runs.steps(workdir) == [2, step]
    warnings.clear()
    state, progress = restore(workdir)
    runs.assert_same_state(state, make_state(step))
    assert progress == progress_of(step)
    assert not warnings


def test_reader_leaves_a_write_in_progress_alone(workdir):
    """eval.py may look at a run that is training; the run itself cleans up after a kill."""
    unfinished = workdir / "checkpoints" / "8.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    Checkpoints(epath.Path(workdir), 3, clean=False).close()
    assert unfinished.exists()
    checkpoints = Checkpoints(epath.Path(workdir), 3)
    checkpoints.save(8, make_state(8), progress_of(8))  # the cleaning is done before the first one
    checkpoints.close()
    assert not unfinished.exists()
    assert runs.steps(workdir) == [4, 6, 8]


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path), 2)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, make_state(step), progress_of(step))
    checkpoints.close()
    assert runs.steps(tmp_path) == [3, 4]


def test_training_goes_on_from_the_one_before(unbroken, tmp_path, warnings):
    config, expected_workdir, expected = unbroken
    shutil.copytree(expected_workdir, tmp_path / "run")
    assert runs.steps(tmp_path / "run") == [8, 10, 12]
    for step in (10, 12):
        flip_a_bit(next((tmp_path / "run" / "checkpoints" / str(step) / "state").rglob("d/*")))
    state = runs.run(config, tmp_path / "run")
    assert len(warnings) == 2
    runs.assert_same_state(state, expected)
    assert runs.curve(tmp_path / "run") == runs.curve(expected_workdir)
    warnings.clear()
    runs.assert_same_state(runs.run(config, tmp_path / "run"), expected)
    assert not warnings


def test_all_damaged_stops_the_command(unbroken, tmp_path):
    config, workdir, _ = unbroken
    shutil.copytree(workdir, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        truncate(folder / "progress" / "_METADATA")
    files = sorted((tmp_path / "run").rglob("*"))
    result = runs.execute(runs.arguments(config, tmp_path / "run"))
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert "no checkpoint can be read" in lines[-1]
    assert sum("cannot be read (" in line for line in lines) == 3
    assert len(lines) == 4
    assert sorted((tmp_path / "run").rglob("*")) == files


def test_relative_folder(tmp_path, monkeypatch):
    """`--workdir` is relative to where the command runs, as its default is."""
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(epath.Path("runs/x"), 1)
    checkpoints.save(1, make_state(1), progress_of(1))
    assert checkpoints.restore(make_state(0))[1] == progress_of(1)
    checkpoints.close()
    assert (tmp_path / "runs/x/checkpoints/1").is_dir()
