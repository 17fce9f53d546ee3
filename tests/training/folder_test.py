"""What is in a run's folder and must not be lost, and runs that do not fit what is there."""

import errno
import json
import os
import pathlib
import shutil
import stat

import pytest
from etils import epath

from linear_transformer.errors import ConfigError, RunError
from linear_transformer.inference import evaluation
from linear_transformer.runtime import environment, files
from linear_transformer.training import build, checkpoints, loop
from linear_transformer.training.metrics import MetricWriter, read_metrics
from tests.training import runs


@pytest.fixture
def copy(unbroken, tmp_path):
    config, workdir, _ = unbroken
    shutil.copytree(workdir, tmp_path / "run")
    return runs.make_config(config.data.path), tmp_path / "run"


def lines(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines()


# metrics.jsonl


def write(folder, steps, resumed=0):
    writer = MetricWriter(epath.Path(folder), resumed)
    for step in steps:
        writer.write(step, "train", {"loss": 1.0 / step})
    writer.close()


DAMAGE = ["", "{", '"text"', "{}", '{"step": "x"}', '{"step": 2, "split": []}', "\udcff\udc80"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_kept_aside(damage, tmp_path, capsys):
    write(tmp_path, range(1, 6))
    before = lines(tmp_path / "metrics.jsonl")
    path = tmp_path / "metrics.jsonl"
    damaged = [before[0], damage or before[1][:9], *before[2:]]
    path.write_bytes("\n".join(damaged).encode("utf-8", "surrogateescape"))
    assert [r["step"] for r in read_metrics(epath.Path(tmp_path))] == [1, 3, 4, 5]
    write(tmp_path, [5], resumed=4)
    assert [r["step"] for r in runs.records(tmp_path)] == [1, 3, 4, 5]
    aside = (tmp_path / "metrics.1.jsonl").read_bytes()
    assert aside.decode("utf-8", "surrogateescape").split("\n") == [damaged[1], damaged[4], ""]
    assert "damaged: 2, moved to metrics.1.jsonl" in capsys.readouterr().out


def test_steps_that_come_again_are_kept_aside(tmp_path):
    """Each time in a file of its own; and no file where there is nothing to keep."""
    write(tmp_path, range(1, 6))
    old = lines(tmp_path / "metrics.jsonl")
    write(tmp_path, [4], resumed=3)
    write(tmp_path, [5], resumed=4)
    write(tmp_path, [2], resumed=1)
    assert lines(tmp_path / "metrics.1.jsonl") == old[3:]
    assert len(lines(tmp_path / "metrics.2.jsonl")) == 4
    assert not (tmp_path / "metrics.3.jsonl").exists()


def test_a_kill_while_lines_are_moved_loses_none(tmp_path, monkeypatch):
    """They are in the new file before they leave the old one."""
    write(tmp_path, range(1, 6))
    local = type(epath.Path(tmp_path))
    replace, replaced = local.replace, []

    def second_fails(self, target):
        replaced.append(target)
        if len(replaced) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(local, "replace", second_fails)
    with pytest.raises(KeyboardInterrupt):
        MetricWriter(epath.Path(tmp_path), 2)
    assert len(lines(tmp_path / "metrics.jsonl")) == 5
    assert len(lines(tmp_path / "metrics.1.jsonl")) == 3


@pytest.mark.parametrize("remove", ["folder", "content"])
def test_checkpoints_that_are_gone(remove, copy):
    config, workdir = copy
    files = [workdir / "checkpoints"] if remove == "folder" else (workdir / "checkpoints").iterdir()
    for folder in files:
        shutil.rmtree(folder)
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is at step 12, and .* no checkpoint"):
        runs.run(config, workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "data.json", "loss.png"])
def test_a_file_in_the_place_of_a_folder(name, copy):
    """Or the other way around, or JSON of another kind: one line, and nothing is written."""
    config, workdir = copy
    path = workdir / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if name in ("metrics.jsonl", "loss.png") else path.write_text("[1]")
    with pytest.raises(ConfigError, match=rf"{path}: (a file, where|a folder, where|cannot be)"):
        runs.run(config, workdir)
    if name == "checkpoints":
        with pytest.raises(ConfigError, match="no checkpoint"):
            evaluation.Run.load(epath.Path(workdir))


def test_killed_before_its_first_checkpoint_a_run_starts_again(copy):
    """Its lines are kept aside; a folder without checksums is no checkpoint."""
    config, workdir = copy
    config.checkpoint_every = 12
    (workdir / "config.json").write_text(config.to_json())
    for folder in (workdir / "checkpoints").iterdir():
        (folder / "checksums.json").unlink()
    runs.run(config, workdir)
    assert [r["step"] for r in runs.curve(workdir)] == [3, 6, 9, 12]
    assert len(lines(workdir / "metrics.1.jsonl")) == 6


# Data, schedule.


def test_other_data_are_refused(copy, tmp_path):
    """Trained on or evaluated; the same text elsewhere is the same data."""
    config, workdir = copy
    shutil.copytree(config.data.path, tmp_path / "text")
    saved = json.loads((workdir / "config.json").read_text())
    config.data.path = saved["data"]["path"] = str(tmp_path / "text")
    (workdir / "config.json").write_text(json.dumps(saved))
    runs.run(config, workdir)
    file = tmp_path / "text" / "3.txt"
    file.write_text(file.read_text().replace("thunder", "Thunder", 1))
    said = rf"config\.data\.path = {config.data.path}: not the data of the run .*another --workdir"
    with pytest.raises(ConfigError, match=said):
        runs.run(config, workdir)
    with pytest.raises(ConfigError, match=said):
        evaluation.Run.load(epath.Path(workdir))


def longer(tmp_path, text, name="run", **changes):
    """Six steps with the cosine schedule, then a config of twelve."""
    settings = {"optimizer__schedule": "cosine", "eval_every": 100}
    runs.run(runs.make_config(text, num_steps=6, **settings), tmp_path / name)
    return runs.make_config(text, **settings, **changes), tmp_path / name


def test_a_longer_run_must_say_where_its_schedule_ends(text, tmp_path):
    config, workdir = longer(tmp_path, text)
    message = r"config\.num_steps is 6 in .* 12 here, .* --config\.optimizer\.schedule_steps=6"
    with pytest.raises(ConfigError, match=message):
        runs.run(config, workdir)
    assert json.loads((workdir / "config.json").read_text())["num_steps"] == 6
    config.optimizer.schedule_steps = 6
    state = runs.run(config, workdir)
    expected = runs.run(config, tmp_path / "unbroken")
    runs.assert_same_state(state, expected)
    assert runs.curve(workdir) == runs.curve(tmp_path / "unbroken")


# Disks.


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


@pytest.mark.parametrize(
    ("log_every", "saved"), [(3, "newest checkpoint in .* is of step 2"), (1, "no checkpoint was")]
)
def test_a_full_disk_is_one_line(log_every, saved, text, tmp_path, monkeypatch):
    monkeypatch.setattr(MetricWriter, "write", full)
    with pytest.raises(RunError, match=rf"somewhere: cannot be written \(No space left.* {saved}"):
        runs.run(runs.make_config(text, log_every=log_every), tmp_path / "run")


def test_a_folder_that_is_removed_ends_the_run(text, tmp_path, monkeypatch):
    """At the next line of the log; nothing is written to a new folder of the same name."""
    collect = loop._Loop._collect

    def collect_and_remove(self, step, metrics):
        collect(self, step, metrics)
        if step == 5:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(loop._Loop, "_collect", collect_and_remove)
    with pytest.raises(RunError, match=r"run: the folder was removed or moved away"):
        runs.run(runs.make_config(text), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_removed_during_a_save_is_named(text, tmp_path, monkeypatch):
    def removed(self, step, *_):
        shutil.rmtree(tmp_path / "run")
        raise RunError("NOT_FOUND: a file of the checkpoint")

    monkeypatch.setattr(checkpoints.Checkpoints, "save", removed)
    with pytest.raises(RunError, match=r"run: the folder was removed or moved away"):
        runs.run(runs.make_config(text), tmp_path / "run")


def test_evaluation_prints_before_it_writes(unbroken, monkeypatch, capsys):
    monkeypatch.setattr(files, "write_json", full)
    run = evaluation.Run.load(epath.Path(unbroken[1]))
    with pytest.raises(RunError, match=r"eval-test\.json: cannot be written .*above are complete"):
        evaluation.evaluate(run, "test", stateful=False)
    assert "bits per byte" in capsys.readouterr().out


def test_a_kill_while_the_environment_is_written_leaves_the_old_file(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / environment.FILE)
    environment.save(path, size=1)
    write = type(path).write_text

    def killed(self, text, *arguments, **options):
        write(self, text[:40], *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        environment.save(path, size=2)
    assert json.loads(path.read_text())["size"] == 1


def test_a_pipe_or_a_link_stays_what_it_is(tmp_path):
    """Such as /dev/null and /dev/stdout."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for name in ("pipe", "link"):
        files.write_text(tmp_path / name, "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


# What is said.


def test_speeds_leave_compilation_out(text, tmp_path, monkeypatch, capsys):
    """A compiler that takes 3 s; the first step alone has no speed."""
    make = build.make_train_step

    def make_slow(*arguments, **options):
        step, slept = make(*arguments, **options), []

        def first_is_slow(state, batch):
            if not slept:
                slept.append(loop.time.sleep(3))
            return step(state, batch)

        return first_is_slow

    monkeypatch.setattr(build, "make_train_step", make_slow)
    runs.run(runs.make_config(text, num_steps=4, log_every=1), tmp_path / "run")
    first, *others = [r for r in runs.records(tmp_path / "run") if r["split"] == "train"]
    assert "steps_per_second" not in first
    assert len(others) == 3
    assert all(record["steps_per_second"] > 4 / 3 for record in others)
    out = capsys.readouterr().out
    assert out.index("compiling:   the training step") < out.index("compiled:    in ")
    assert out.index("compiled:    in ") < out.index("step      1")
