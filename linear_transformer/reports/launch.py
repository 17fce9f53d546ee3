"""Runs of a table's missing experiments, one after the other, with train.py and eval.py."""

import dataclasses
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from types import FrameType

from linear_transformer.errors import ConfigError, RunError
from linear_transformer.reports import cells
from linear_transformer.reports.runs import RECORDS, Found, Run, find
from linear_transformer.reports.tables import PAPER, REDUCED, Experiment, Table
from linear_transformer.runtime import files
from linear_transformer.training.stop import SIGNALS

BENCHMARKS = pathlib.Path("build/benchmarks")


@dataclasses.dataclass
class Job:
    """Experiment to run, with the splits to evaluate.

    Attributes:
      rows: names of the rows that the experiment fills.
      measures: pairs of (split, metric); some of them are not measured yet.
      workdir: folder of the run; it may not exist yet.
      finished: whether the training is complete.
      seconds: training time estimated from earlier runs of the config; None if there are none.
    """

    experiment: Experiment
    rows: list[str]
    measures: list[tuple[str, str]]
    workdir: os.PathLike[str]
    finished: bool
    seconds: float | None

    @property
    def name(self) -> str:
        return f"{', '.join(self.rows)}: {' '.join(self.experiment.arguments())}"

    def describe(self) -> str:
        if self.finished:
            return f"{self.name}: only to be evaluated, {self.workdir}"
        return f"{self.name}: {duration(self.seconds)}, {self.workdir}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown"
    return f"about {seconds:.0f} s" if seconds < 600 else f"about {seconds / 3600:.1f} h"


def summary(jobs: list[Job]) -> str:
    """Returns the number of jobs and the training time of all, as far as it is known."""
    known = [job.seconds for job in jobs if not job.finished and job.seconds is not None]
    unknown = sum(not job.finished and job.seconds is None for job in jobs)
    parts = [f"{duration(sum(known, start=0.0))} of training"] if known or not unknown else []
    parts += [f"{unknown} of unknown time"] if unknown else []
    return f"{len(jobs)} to run; {', and '.join(parts)}"


def plan(table: Table, scale: str, found: Found, folder: pathlib.Path) -> list[Job]:
    """Returns the missing jobs of a table; cells with the same experiment share one job.

    Args:
      table: the table.
      scale: PAPER or REDUCED.
      found: existing runs.
      folder: parent folder of new runs.
    """
    wanted: list[tuple[Experiment, list[str], list[tuple[str, str]]]] = []
    points = (
        (row, column, point)
        for row, column, experiment in cells.experiments(table, scale)
        if not cells.complete(column, experiment, scale, found)
        for point in experiment.points()
    )
    for row, column, point in points:
        known = next((entry for entry in wanted if entry[0] == point), None)
        if known is None:
            known = (point, [], [])
            wanted.append(known)
        _, rows, measures = known
        if row.name not in rows:
            rows.append(row.name)
        if (metric := column.metric_at(scale)) and (column.split, metric) not in measures:
            measures.append((column.split, metric))
    jobs = []
    for experiment, rows, measures in wanted:
        runs = found.of(experiment)
        finished = [run for run in runs if run.finished]
        if any(not _missing(run, measures) for run in finished):
            continue
        workdir = finished[0].folder if finished else folder / experiment.folder()
        seconds = _estimate(runs, found.config(experiment)["num_steps"])
        jobs.append(Job(experiment, rows, measures, workdir, bool(finished), seconds))
    return jobs


def search(folder: pathlib.Path) -> Found:
    """Returns the runs in a folder, and the runs and benchmark files of the usual places."""
    return find([folder, RECORDS, BENCHMARKS])


def keep(table: Table, found: Found, folder: pathlib.Path) -> None:
    """Copies the finished runs of a table, with all points of its grids, to the records."""
    for scale in (PAPER, REDUCED):
        grids = (experiment for _, _, experiment in cells.experiments(table, scale))
        runs = (run for grid in grids for point in grid.points() for run in found.of(point))
        for run in runs:
            if run.finished:
                run.keep(folder)


def limit_cores(count: int) -> None:
    """Lets this process and the runs that it starts use the last `count` of its cores; 0 is all.

    Raises:
      ConfigError: the system cannot limit the cores of a process.
    """
    if count and not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--cores: this system cannot limit the cores of a process")
    if count:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def write_text(text: str, path: pathlib.Path) -> None:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise ConfigError(f"--output={path}: cannot be written ({error.strerror})") from error


def run_missing(
    tables: list[Table],
    scale: str,
    folder: pathlib.Path,
    files: dict[str, str],
    *,
    dry_run: bool = False,
) -> list[str]:
    """Runs the missing experiments of tables; returns a line for each failure.

    After each run it is decided again what is missing, since a run can complete a grid.

    Args:
      tables: the tables, in the order in which they are run.
      scale: PAPER or REDUCED.
      folder: parent folder of new runs.
      files: paths of the user's own files, by the names in `Experiment.files`.
      dry_run: whether to print the experiments without running them.

    Raises:
      ConfigError: no experiment needs one of `files`.
    """
    experiments = [e for table in tables for _, _, e in cells.experiments(table, scale)]
    needed = sorted({name for experiment in experiments for name in experiment.files.values()})
    if unknown := files.keys() - needed:
        raise ConfigError(
            f"--files={min(unknown)}: not needed here; needed are {', '.join(needed) or 'none'}"
        )

    def missing() -> list[Job]:
        found = search(folder)
        return distinct([job for table in tables for job in plan(table, scale, found, folder)])

    jobs = missing()
    if not jobs:
        print("nothing is missing", flush=True)
        return []
    for job in jobs:
        print(job.describe(), flush=True)
    print(summary(jobs), flush=True)
    failures = []
    ended = set()
    while not dry_run and (left := [job for job in missing() if str(job.workdir) not in ended]):
        job = left[0]
        ended.add(str(job.workdir))
        print(f"--- {job.name}", flush=True)
        start = time.monotonic()
        if problem := launch(job, files):
            failures.append(f"{job.name}: {problem}")
            print(f"failed: {failures[-1]}", flush=True)
        print(
            f"ended after {time.monotonic() - start:,.0f} s, estimated: {duration(job.seconds)}; "
            f"{len(ended)} ended, at most {len(left) - 1} are left",
            flush=True,
        )
    return failures


def distinct(jobs: list[Job]) -> list[Job]:
    """Returns one job for each folder, at the place of its first, with the measures of all."""
    planned: dict[str, Job] = {}
    for job in jobs:
        known = planned.setdefault(str(job.workdir), job)
        known.measures = list(dict.fromkeys(known.measures + job.measures))
    return list(planned.values())


def launch(job: Job, files: dict[str, str]) -> str | None:
    """Trains and evaluates, with output to the terminal.

    Args:
      job: the experiment and its splits.
      files: paths of the user's own files, by the names in `Experiment.files`.

    Returns:
      A description of the failure; None if there was no failure.
    """
    lacking = [name for name in job.experiment.files.values() if name not in files]
    if lacking and not job.finished:
        return f"needs --files={lacking[0]}=PATH"
    if not job.finished:
        given = [f"--config.{key}={files[name]}" for key, name in job.experiment.files.items()]
        status = execute(["train.py", *job.experiment.arguments(), *given, *_workdir(job)])
        if status:
            return f"train.py ended with status {status}"
    trained = find([job.workdir]).of(job.experiment)
    if not trained or not trained[0].finished:
        return f"{job.workdir} has no finished run of this config"
    for split in dict.fromkeys(_missing(trained[0], job.measures)):
        status = execute(["eval.py", *_workdir(job), f"--split={split}", "--nostateful"])
        if status:
            return f"eval.py --split={split} ended with status {status}"
    return None


def execute(arguments: list[str]) -> int:
    """Runs train.py or eval.py as a module, which installed packages have; returns its status.

    A signal ends that program first, which then saves its step, and this one after it.

    Raises:
      KeyboardInterrupt: the signal was SIGINT.
      RunError: it was another one.
    """
    script, *flags = arguments
    module = f"linear_transformer.cli.{pathlib.Path(script).stem}"
    running: list[subprocess.Popen[bytes]] = []
    received: list[signal.Signals] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number))
        for process in running:
            # Not SIGINT, which the terminal has sent already: the second one ends without saving.
            process.terminate()

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in handled}
    try:
        running.append(subprocess.Popen([sys.executable, "-m", module, *flags]))
        if received:  # before there was a program to end
            running[0].terminate()
        # `wait` without end would not see a signal that does not interrupt it: one that comes just
        # before it, or one that another thread of this process takes.
        while (status := running[0].poll()) is None:
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if received:
        raise RunError(f"interrupted by {received[0].name}; the same command goes on from there")
    return status


def _workdir(job: Job) -> list[str]:
    return [f"--workdir={job.workdir}"]


def _missing(run: Run, measures: list[tuple[str, str]]) -> list[str]:
    """Returns the splits on which a run is not evaluated yet."""
    return [split for split, metric in measures if run.value(split, metric) is None]


def _estimate(runs: list[Run], num_steps: int) -> float | None:
    rates = [run.seconds / run.step for run in runs if run.seconds]
    return num_steps * statistics.fmean(rates) if rates else None
