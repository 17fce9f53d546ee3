"""What is launched for a table, with the scripts replaced; and the command as a user runs it."""

import dataclasses
import json
import pathlib
import signal
import sys
import threading

import pytest

from linear_transformer.errors import ConfigError, RunError
from linear_transformer.reports import __main__ as command, cells, launch
from linear_transformer.reports.runs import RECORDS, find
from linear_transformer.reports.tables import PAPER, REDUCED, load_table
from tests.cli.train_test import assert_one_line
from tests.reports import folders
from tests.training import runs

LINEAR, SOFTMAX = folders.TABLE.rows


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """What ran; train.py writes a finished run unless it is of softmax, which fails."""
    calls = []

    def execute(arguments):
        calls.append(arguments)
        workdir = next(a for a in arguments if a.startswith("--workdir=")).partition("=")[2]
        folder = tmp_path / workdir
        if arguments[0] == "train.py":
            if ":softmax" in arguments[1]:
                return 2
            folders.write_run(folder, LINEAR.reduced, {"loss": 0.5})
        else:
            record = {"step": folders.STEPS, "metrics": {"accuracy": 0.5}}
            (folder / "eval-test.json").write_text(json.dumps(record))
        return 0

    monkeypatch.setattr(launch, "execute", execute)
    monkeypatch.setattr(launch, "BENCHMARKS", tmp_path / "none")
    return calls


def test_reduced_rows_are_trained_then_evaluated(tmp_path, scripts, capsys):
    failures = launch.run_missing([folders.TABLE], REDUCED, tmp_path / "runs", {})
    name = "copying-linear,small-num_steps=40"
    workdir = f"--workdir={tmp_path}/runs/papers/katharopoulos2020/{name}"
    config = [f"--config={folders.CONFIG}:linear,small", "--config.num_steps=40"]
    assert scripts[0] == ["train.py", *config, workdir]
    assert scripts[1] == ["eval.py", workdir, "--split=test", "--nostateful"]
    assert [call[0] for call in scripts[2:]] == ["train.py"]
    (failure,) = failures
    assert failure.startswith(f"softmax: --config={folders.CONFIG}:softmax,small")
    assert failure.endswith("train.py ended with status 2")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("linear: --config=")
    assert printed[2] == "2 to run; 2 of unknown time"
    assert any(line.endswith("1 ended, at most 1 are left") for line in printed)
    assert f"failed: {failure}" in printed
    assert launch.run_missing([folders.TABLE], REDUCED, tmp_path / "runs", {}) == failures
    assert len(scripts) == 4  # linear is not run again
    table = dataclasses.replace(folders.TABLE, rows=(LINEAR,))
    assert launch.run_missing([table], REDUCED, tmp_path / "runs", {}) == []
    assert capsys.readouterr().out.endswith("nothing is missing\n")


def test_a_grid_ends_at_a_value_that_is_enough(tmp_path):
    """The other points are not run; a value below, or one of another split, ends nothing."""
    grid = {"optimizer.learning_rate": (1e-3, 1e-2, 1e-1)}
    experiment = dataclasses.replace(LINEAR.reduced, grid=grid)
    column = dataclasses.replace(folders.TABLE.columns[0], enough=0.99)
    row = dataclasses.replace(LINEAR, published=(None,), reduced=experiment)
    table = dataclasses.replace(folders.TABLE, columns=(column,), rows=(row,))

    def planned():
        return len(launch.plan(table, REDUCED, find([tmp_path]), tmp_path))

    first, second, _ = experiment.points()
    assert planned() == 3
    folders.write_run(tmp_path / "first", first, {"accuracy": 1.0}, test={"accuracy": 0.98})
    assert planned() == 2
    folders.write_run(tmp_path / "second", second, test={"accuracy": 0.99})
    assert planned() == 0
    assert [cell.value for cell in cells.fill(table, find([tmp_path]))] == [99.0]


def test_a_dry_run_starts_nothing(tmp_path, scripts, capsys):
    """Two tables are planned in their order, with the known time; nothing runs."""
    folders.write_run(tmp_path / "begun", LINEAR.reduced, step=20)
    linear, softmax = (dataclasses.replace(folders.TABLE, rows=(r,)) for r in (LINEAR, SOFTMAX))
    assert launch.run_missing([softmax, linear], REDUCED, tmp_path, {}, dry_run=True) == []
    assert not scripts
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("softmax: ") and second.startswith("linear: ")
    assert last == "2 to run; about 15 s of training, and 1 of unknown time"


def test_records_have_copies_of_the_small_files(tmp_path, monkeypatch):
    """A copy counts once beside its run, fills the same cell alone, and names the same command."""
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path("runs/papers/a")
    folders.write_run(path, LINEAR.paper, {"loss": 0.5}, test={"accuracy": 0.9})
    (path / "checkpoints").mkdir()
    (run,) = find([path.parent]).runs
    run.keep(pathlib.Path("runs"))
    copy = RECORDS / "papers/a"
    assert {p.name for p in copy.iterdir()} == {"config.json", "metrics.jsonl", "eval-test.json"}
    both = find([pathlib.Path("runs"), RECORDS])
    assert [r.folder for r in both.runs] == [path]
    both.runs[0].keep(RECORDS)  # a run outside the folder of runs is not copied
    filled = [cells.fill(folders.TABLE, find([top]))[0] for top in (path, RECORDS)]
    assert filled[0].values == filled[1].values == (90.0,)
    assert filled[0].sources == filled[1].sources
    assert "--workdir=runs/papers/a`" in filled[1].sources[0]


def test_records_have_every_point_of_a_grid(tmp_path, monkeypatch):
    """A page written from the records says, as before, of how many points a cell is the best."""
    monkeypatch.chdir(tmp_path)
    experiment = dataclasses.replace(LINEAR.paper, grid={"optimizer.learning_rate": (1e-3, 1e-2)})
    row = dataclasses.replace(LINEAR, paper=experiment, reduced=None)
    table = dataclasses.replace(folders.TABLE, rows=(row,))
    for name, point in zip("ab", experiment.points(), strict=True):
        folders.write_run(pathlib.Path("runs", name), point, test={"accuracy": 0.9})
    launch.keep(table, find([pathlib.Path("runs")]), pathlib.Path("runs"))
    cell = cells.fill(table, find([RECORDS]))[0]
    assert cell.remark == "best of 2 of 2 points: learning_rate 0.001"


def test_a_finished_run_is_only_evaluated(tmp_path, scripts):
    folders.write_run(tmp_path / "elsewhere", LINEAR.paper, {"loss": 0.5})
    folders.write_run(tmp_path / "begun", SOFTMAX.paper, step=20)
    jobs = launch.plan(folders.TABLE, PAPER, find([tmp_path]), tmp_path)
    assert [job.finished for job in jobs] == [True, False]
    assert jobs[0].workdir == tmp_path / "elsewhere"
    assert "only to be evaluated" in jobs[0].describe()
    # 10 steps at 2 a second and 10 at 4, and 40 to go.
    assert jobs[1].seconds == pytest.approx(2 * (10 / 2 + 10 / 4))
    assert "about 15 s" in jobs[1].describe()
    assert launch.launch(jobs[0], {}) is None
    assert [call[0] for call in scripts] == ["eval.py"]


def test_data_of_the_user(tmp_path, scripts):
    experiment = dataclasses.replace(LINEAR.paper, files={"data.path": "wsj"})
    row = dataclasses.replace(LINEAR, paper=experiment)
    table = dataclasses.replace(folders.TABLE, rows=(row,))
    [job] = launch.plan(table, PAPER, find([tmp_path]), tmp_path)
    assert launch.launch(job, {}) == "needs --files=wsj=PATH"
    assert not scripts
    launch.launch(job, {"wsj": "/data/wsj"})
    assert "--config.data.path=/data/wsj" in scripts[0]


def test_a_stopped_run_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "execute", lambda arguments: 0)
    [job, _] = launch.plan(folders.TABLE, REDUCED, find([tmp_path]), tmp_path)
    assert launch.launch(job, {}).endswith("has no finished run of this config")


def test_durations():
    assert launch.duration(None) == "time unknown"
    assert launch.duration(90.0) == "about 90 s"
    assert launch.duration(5400.0) == "about 1.5 h"


INTERRUPTS_ITS_PARENT = """#!/bin/sh
trap 'sleep 1; touch {saved}; exit 0' TERM
kill -{signal} $PPID
for second in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & wait $!; done
"""


def execute_and_signal(name, tmp_path, monkeypatch):
    """The program sends a signal to this process, and saves when it is told to end."""
    program = tmp_path / "program"
    program.write_text(INTERRUPTS_ITS_PARENT.format(saved=tmp_path / "saved", signal=name))
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    # Where the tests run, the signal may be ignored; the program would wait for ever.
    number = getattr(signal, f"SIG{name}")
    before = signal.signal(number, signal.default_int_handler)
    try:
        launch.execute(["train.py"])
    finally:
        signal.signal(number, before)
        assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("name", "error"), [("INT", KeyboardInterrupt), ("TERM", RunError), ("HUP", RunError)]
)
def test_a_signal_lets_the_run_save(name, error, tmp_path, monkeypatch):
    with pytest.raises(error):
        execute_and_signal(name, tmp_path, monkeypatch)


def test_a_signal_that_another_thread_takes(tmp_path, monkeypatch):
    """It interrupts no call of the main thread, as one that comes just before the call."""
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with pytest.raises(KeyboardInterrupt):
            execute_and_signal("INT", tmp_path, monkeypatch)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        ended.set()
        other.join()


def test_files_have_names():
    assert command._files(["wsj=/a=b", "gpt2=x"]) == {"wsj": "/a=b", "gpt2": "x"}
    for argument in ("wsj", "wsj="):
        with pytest.raises(ConfigError, match=f"--files={argument}: must be NAME=PATH"):
            command._files([argument])


def test_pictures_that_lie_beside_the_document(tmp_path, monkeypatch):
    pictures = (("x.png", "What x shows."), ("y.png", "What y shows."))
    table = dataclasses.replace(folders.TABLE, pictures=pictures)
    folders.write_run(tmp_path / "run", table.rows[0].paper, {"loss": 0.1})
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "x.png").write_bytes(b"")
    command.write_all({"a/table1": table}, find([tmp_path]), str(tmp_path / "all.md"))
    document = (tmp_path / "all.md").read_text()
    assert "What x shows.\n\n![x.png](all/x.png)\n" in document
    assert "What y shows." not in document


def test_the_command(tmp_path):
    """Mistakes are one line and status 2; --list and --output do what they say; a failure is 1."""
    module, table = ["-m", "linear_transformer.papers"], "--table=katharopoulos2020/table2"
    linear = load_table("katharopoulos2020/figure2").rows[2]
    folders.write_run(tmp_path / "runs" / "a", linear.reduced, {"loss": 0.5}, step=2_000)
    commands = {
        "all": ["--all", f"--runs={tmp_path}/runs", f"--output={tmp_path}/all.md"],
        "unknown table": ["--table=nope"],
        "no such folder": [table, f"--runs={tmp_path}/none"],
        "list": ["--list", f"--runs={tmp_path}"],
        "no such file": [table, "--launch", "--dry_run", "--files=cifar=x"],
        "launch": [table, "--launch", f"--runs={tmp_path}/new", f"--output={tmp_path}/x.md"],
    }
    results = {name: runs.execute([*module, *given]) for name, given in commands.items()}
    assert_one_line(results["no such folder"], f"--runs={tmp_path}/none: no such folder")
    assert_one_line(results["no such file"], "--files=cifar: not needed here; needed are cifar10")
    unknown = results["unknown table"]
    assert unknown.returncode == 2
    (line,) = unknown.stderr.splitlines()
    assert line.startswith(
        "error: --table=nope: the tables are arora2023/figure2, grazzi2024/table3, "
    )
    assert results["list"].returncode == 0, results["list"].stderr
    assert "| lra2020/table1 | 77 | 0 | 0 | 0 | 77 | 11 |" in results["list"].stdout
    assert results["all"].returncode == 0, results["all"].stderr
    document = (tmp_path / "all.md").read_text()
    assert "| linear | loss, nats | - | 0.50000 |" in document
    assert "![Copying sequences: convergence](all/katharopoulos2020-figure2.png)" in document
    assert (tmp_path / "all" / "katharopoulos2020-figure2.png").exists()
    failed = results["launch"]
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: 4 failed, the first: softmax: --config=")
    assert failed.stderr.endswith("needs --files=cifar10=PATH\n")
    assert (tmp_path / "x.png").exists()
    assert (tmp_path / "x.md").read_text() in failed.stdout
