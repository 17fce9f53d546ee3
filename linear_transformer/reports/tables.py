"""Classes for published tables and their experiments; the tables are in `configs/papers/`."""

import dataclasses
import functools
import importlib
import itertools
import operator
import pathlib
import re
from typing import Any

import ml_collections

from linear_transformer.config import shipped_configs
from linear_transformer.errors import ConfigError

FOLDER = "configs/papers"
PAPER, REDUCED = "paper scale", "reduced"

# A number, a word that the paper has in its place, such as "OOM", or None if unknown.
Published = float | int | str | None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Config with changes of some of its values.

    Attributes:
      config: value of train.py's --config.
      changes: changed values by key: {"data.dataset": "cifar10"}.
      files: names of the user's own files by the key that holds their path: {"data.path": "wsj"}.
        Runs with any such path are the same experiment; runs with the default path are not.
      grid: tuples of values by key: {"optimizer.learning_rate": (1e-4, 1e-3)}.  A cell then has the
        best value over the points of the grid, as in papers that tune each model.
    """

    config: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    def points(self) -> "list[Experiment]":
        """Returns an experiment for each point of the grid; without a grid, this one."""
        return [
            dataclasses.replace(
                self, changes=self.changes | dict(zip(self.grid, values, strict=True)), grid={}
            )
            for values in itertools.product(*self.grid.values())
        ]

    def load(self) -> ml_collections.ConfigDict:
        """Returns the config with the changes.

        Raises:
          ConfigError: the config does not exist, or it lacks a changed key.
        """
        path, _, variant = self.config.partition(":")
        module = _import(path)
        config = module.get_config(variant) if variant else module.get_config()
        for key, value in self.changes.items():
            *parents, name = key.split(".")
            part = functools.reduce(operator.getitem, parents, config)
            if name not in part:
                raise ConfigError(f"{self.config} has no key config.{key}")
            part[name] = value
        return config

    def arguments(self) -> list[str]:
        """Returns the flags of train.py, without paths of files."""
        changes = (f"--config.{key}={value}" for key, value in self.changes.items())
        return [f"--config={self.config}", *changes]

    def folder(self) -> str:
        """Returns the folder of the run, relative to the folder of all runs."""
        path, _, variant = self.config.partition(":")
        changes = (f"{key.rpartition('.')[2]}={value}" for key, value in self.changes.items())
        parts = pathlib.Path(path).with_suffix("").parts[1:]
        return "-".join(["/".join(parts), *filter(None, [variant]), *changes])


# One experiment for all columns, or one for each column.
Experiments = Experiment | tuple[Experiment | None, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Place of a number in a JSON file that a program of `benchmarks/` wrote.

    Attributes:
      command: command that writes the file.
      results: name of the list of results.
      candidate: key whose value is `Row.candidate`.
      value: key of the number.
      facts: entries that the file must have: {"dataset": "mnist"}.
      where: entries that the result must have: {"batch": 1}.
      devices: "cpu", "accelerator" for all other devices, or None for any device.
    """

    command: str
    results: str
    candidate: str
    value: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    devices: str | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """Column of a table: one measure.

    Attributes:
      metric: metric of a run's evaluation; None for benchmarks and means.
      reduced_metric: metric of the reduced twin if it differs.
      split: split that is evaluated.
      better: "lower" or "higher".
      enough: value of the metric that ends a grid: once a point reaches it, no other point is run.
      scale: factor from the metric to the number of the column: 100 for percent.
      digits: digits after the decimal point.
      benchmark: benchmark that measures the column, instead of runs.
      mean_of: names of other columns; this column is their mean.
      tolerance: allowed difference from the published number; an estimate, since the papers
        report single runs.
    """

    name: str
    unit: str = ""
    metric: str | None = None
    reduced_metric: str | None = None
    split: str = "test"
    better: str = "lower"
    enough: float | None = None
    scale: float = 1.0
    digits: int | None = None
    benchmark: Benchmark | None = None
    mean_of: tuple[str, ...] = ()
    tolerance: float | None = None

    def metric_at(self, scale: str) -> str | None:
        return (self.reduced_metric if scale == REDUCED else None) or self.metric

    def is_enough(self, value: float) -> bool:
        if self.enough is None:
            return False
        return value >= self.enough if self.better == "higher" else value <= self.enough


@dataclasses.dataclass(frozen=True)
class Row:
    """Row of a table: one model.

    Attributes:
      published: one value for each column.
      paper, reduced: experiments in the paper's setting, and reduced ones for small machines.
      candidate: name of the model in benchmarks.
      reason: reason why there is no experiment in the paper's setting.
    """

    name: str
    published: tuple[Published, ...]
    paper: Experiments = None
    reduced: Experiments = None
    candidate: str | None = None
    reason: str = ""

    def experiment(self, column: int, scale: str) -> Experiment | None:
        """Returns the experiment that fills a column, given by its index."""
        experiments = self.paper if scale == PAPER else self.reduced
        return experiments[column] if isinstance(experiments, tuple) else experiments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Table of a paper, or the curves of a figure.

    Attributes:
      source: paper and number of the table.
      note: remark for the reader.
      curves: whether the picture shows the first column against the step, instead of bars.
      pictures: pairs of (file, caption) that other commands draw beside the document of all tables.
    """

    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    curves: bool = False
    pictures: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        for row in self.rows:
            for values in (row.published, row.paper, row.reduced):
                if isinstance(values, tuple) and len(values) != len(self.columns):
                    raise ValueError(f"{self.title}, {row.name}: not one value for each column")


def table_names() -> list[str]:
    """Returns the names of all tables, such as `katharopoulos2020/table1`."""
    folder = pathlib.Path(shipped_configs.find(FOLDER))
    files = [*folder.glob("*/table*.py"), *folder.glob("*/figure*.py")]
    names = (str(file.relative_to(folder).with_suffix("")) for file in files)
    return sorted(names, key=lambda name: [int(x) if x.isdigit() else x for x in _parts(name)])


def load_table(name: str) -> Table:
    """Loads a table by its name.

    Raises:
      ConfigError: the table does not exist.
    """
    names = table_names()
    if name not in names:
        raise ConfigError(f"--table={name}: the tables are {', '.join(names)}")
    return _import(f"{FOLDER}/{name}.py").TABLE


def _parts(name: str) -> list[str]:
    """Splits a name into words and numbers; the sort key puts table 10 after table 9."""
    return re.split(r"(\d+)", name)


def _import(path: str) -> Any:
    shipped_configs.make_importable()
    try:
        return importlib.import_module(path.removesuffix(".py").replace("/", "."))
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: cannot be imported ({error})") from error
