"""Search for runs and benchmark files that can fill a table."""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import shlex
import shutil
from collections.abc import Sequence
from typing import Any

from etils import epath

from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.reports.tables import PAPER, REDUCED, Benchmark, Experiment
from linear_transformer.runtime import environment, files
from linear_transformer.training import config_file
from linear_transformer.training.experiment import flat
from linear_transformer.training.metrics import read_metrics
from linear_transformer.training.stop_condition import NAME as STOP_WHEN

# Keys that do not distinguish experiments: reports, checkpoints, the mesh, the seed.
IGNORED = {*config_file.RESUMABLE_KEYS, "seed"} - {"num_steps", "stop_when"}
RECORDS = pathlib.Path("docs/results/records")  # runs and benchmark files that git keeps
_KEPT = ("config.json", "metrics.jsonl", environment.FILE, "eval-*.json")
_MAIN = ("task", "data.dataset", "model.pattern", "optimizer.learning_rate")
_NOT_RUNS = ("checkpoints", "tensorboard")  # folders inside a run
_SIZES = {"paper size": PAPER, "small twin": REDUCED}  # values in files of benchmarks


def flatten(config: Any) -> dict[str, Any]:
    """Returns a config with all its keys, by dotted name, with values of JSON types."""
    return _flatten(json.dumps(configuration.plain(config)))


@functools.cache  # a search for what is missing reads the same runs again after each run
def _flatten(text: str) -> dict[str, Any]:
    config = json.loads(text)
    try:
        values = flat(config)
    except ConfigError:  # another version of the code made it, so it fits no current experiment
        values = configuration.flatten(config)
    return json.loads(json.dumps(values))


@dataclasses.dataclass(frozen=True)
class Run:
    """Run, read from a folder that train.py wrote.

    Attributes:
      config: values of the config by dotted key.
      records: lines of `metrics.jsonl`.
      environment: content of `environment.json`; empty for an older run without it.
    """

    folder: pathlib.Path | epath.Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: pathlib.Path | epath.Path) -> "Run":
        path = epath.Path(folder)
        made = path / environment.FILE
        try:
            where = files.parse_json(made.read_text()) if made.exists() else {}
        except ValueError as error:
            raise ConfigError(f"{made}: not JSON") from error
        return cls(folder, flatten(config_file.read(path)), read_metrics(path), where)

    def keep(self, runs: pathlib.Path) -> None:
        """Copies the small files of a run to the records, under its path below `runs`.

        Raises:
          ConfigError: the records cannot be written.
        """
        folder = pathlib.Path(self.folder)
        if not folder.is_relative_to(runs):
            return
        target = RECORDS / folder.relative_to(runs)
        try:
            target.mkdir(parents=True, exist_ok=True)
            for path in (path for pattern in _KEPT for path in folder.glob(pattern)):
                shutil.copyfile(path, target / path.name)
        except OSError as error:
            raise ConfigError(f"{target}: cannot be written ({error.strerror})") from error

    @property
    def workdir(self) -> pathlib.Path:
        """Folder in which the commands of this run write: runs/PATH for the records."""
        folder = pathlib.Path(self.folder)
        return "runs" / folder.relative_to(RECORDS) if folder.is_relative_to(RECORDS) else folder

    @property
    def step(self) -> int:
        return max((record["step"] for record in self.records), default=0)

    @property
    def finished(self) -> bool:
        step = self.step
        met = any(
            r["step"] == step and any(k.startswith(STOP_WHEN) for k in r) for r in self.records
        )
        return step > 0 and (step >= self.config.get("num_steps", 0) or met)

    def is_of(self, config: dict[str, Any], experiment: Experiment) -> bool:
        """Returns whether the run is of an experiment; `config` is the experiment's flat config."""
        for key in config.keys() | self.config.keys():
            same = config.get(key) == self.config.get(key)
            if key in experiment.files:
                if same:
                    return False
            elif not same and key.split(".")[0] not in IGNORED and key != "data.path":
                return False
        return True

    def value(self, split: str, metric: str) -> tuple[float, bool] | None:
        """Returns the metric of a split after the last step, and whether eval.py computed it.

        Raises:
          ConfigError: a file of eval.py cannot be read.
        """
        path = self.folder / f"eval-{split}.json"
        if path.exists():
            try:
                evaluation = files.parse_json(path.read_text())
                if evaluation["step"] >= self.step and metric in evaluation["metrics"]:
                    return float(evaluation["metrics"][metric]), True
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}: not an evaluation; run eval.py again") from error
        if split == "train":  # these records cover the last steps only
            return None
        last = [r for r in self.records if r["split"] == split and r["step"] == self.step]
        return (float(last[-1][metric]), False) if last and metric in last[-1] else None

    @property
    def seconds(self) -> float:
        """Time of the training steps in seconds, without evaluations."""
        total, before = 0.0, 0
        for record in self.records:
            if record["split"] == "train" and record.get("steps_per_second"):
                total += (record["step"] - before) / record["steps_per_second"]
                before = record["step"]
        return total

    def made(self) -> str:
        """Returns date of the last record, hardware and commit."""
        seconds = self.records[-1].get("time") if self.records else None
        date = "no date"
        if seconds is not None:
            date = f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M UTC}"
        return _made(self.environment | {"date": date})

    def command(self, config: dict[str, Any], experiment: Experiment) -> str:
        """Returns the command that makes this run; `config` is the experiment's flat config."""
        given = [
            f"--config.{key}={value}"
            for key, value in sorted(self.config.items())
            if config.get(key) != value
        ]
        return shlex.join(
            ["python", "train.py", *experiment.arguments(), *given, f"--workdir={self.workdir}"]
        )


def _made(where: dict[str, Any]) -> str:
    """Returns date, hardware and commit, as far as they are known."""
    parts = [where.get("date", "no date")]
    if "hardware" in where:
        parts.append(environment.machine(where))
    if where.get("commit"):
        changed = " with changes" if where.get("uncommitted_changes") else ""
        parts.append(f"commit {where['commit']}{changed}")
    return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class BenchmarkFile:
    """JSON file that a program of `benchmarks/` wrote."""

    path: pathlib.Path
    content: dict[str, Any]

    @property
    def scale(self) -> str | None:
        return _SIZES.get(self.content.get("size", ""))

    def rows(self, benchmark: Benchmark, candidate: str) -> list[dict[str, Any]]:
        """Returns the results of one candidate that match a benchmark."""
        if any(self.content.get(key) != value for key, value in benchmark.facts.items()):
            return []
        devices = self.content.get("hardware", {}).get("devices", "")
        if benchmark.devices and (benchmark.devices == "cpu") != devices.endswith("cpu"):
            return []
        wanted = {benchmark.candidate: candidate} | benchmark.where
        return [
            row
            for row in self.content["results"].get(benchmark.results, [])
            if benchmark.value in row and all(row.get(k) == v for k, v in wanted.items())
        ]

    def source(self) -> str:
        """Returns command, date and hardware, as Markdown."""
        return f"`{self.content['command']}`, {_made(self.content)}; {self.path}"


@dataclasses.dataclass(frozen=True)
class Found:
    """Runs and benchmark files found in some folders."""

    runs: list[Run]
    benchmarks: list[BenchmarkFile]

    @functools.cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        return {}

    def config(self, experiment: Experiment) -> dict[str, Any]:
        """Returns the flat config of an experiment, from a cache after the first call."""
        name = " ".join(experiment.arguments())
        if name not in self._configs:
            self._configs[name] = flatten(experiment.load())
        return self._configs[name]

    def of(self, experiment: Experiment) -> list[Run]:
        """Returns the runs of an experiment, finished or not."""
        likely = self.runs and self._likely(experiment)
        if not likely:
            return []
        config = self.config(experiment)
        return [run for run in likely if run.is_of(config, experiment)]

    def _likely(self, experiment: Experiment) -> list[Run]:
        """Returns the runs with the main values of a config, without the time to check it."""
        config = configuration.flatten(configuration.plain(experiment.load()))
        main = json.loads(json.dumps({key: config[key] for key in _MAIN if key in config}))
        return [r for r in self.runs if all(r.config.get(k) == v for k, v in main.items())]


def find(folders: Sequence[os.PathLike[str]]) -> Found:
    """Searches folders, and all folders below them, for runs and benchmark files.

    Raises:
      ConfigError: a run can't be read.
    """
    runs: list[Run] = []
    benchmarks: dict[pathlib.Path, BenchmarkFile] = {}
    for top in folders:
        for name, below, inside in os.walk(top):
            folder = pathlib.Path(name)
            below[:] = sorted(set(below) - set(_NOT_RUNS))
            if "config.json" in inside and "metrics.jsonl" in inside:
                run = Run.read(folder)
                if not any((run.config, run.records) == (r.config, r.records) for r in runs):
                    runs.append(run)  # the records have copies of runs
                continue
            for path in (folder / file for file in inside if file.endswith(".json")):
                if file := _read_benchmark(path):
                    benchmarks.setdefault(path.resolve(), file)
    return Found(runs, list(benchmarks.values()))


def _read_benchmark(path: pathlib.Path) -> BenchmarkFile | None:
    """Reads a benchmark file; returns None for any other file."""
    try:
        content = files.parse_json(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        return None
    return BenchmarkFile(path, content) if "command" in content else None
