"""What a paper's table says, and which experiments measure it; `configs/papers/` has the tables."""

import dataclasses
import functools
import importlib
import operator
import pathlib
import re
from typing import Any

import ml_collections

from linear_transformer.config import shipped_configs
from linear_transformer.errors import ConfigError

FOLDER = "configs/papers"
PAPER, REDUCED = "paper scale", "reduced"

# A number; a word where the paper has one, as "OOM"; None where it has none, or none is known.
Published = float | int | str | None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config and what is changed in it.

    Attributes:
      config: as `train.py --config` takes it.
      changes: other values, by key: {"data.dataset": "cifar10"}.
      files: keys whose values are the user's own files, by what these are: {"data.path": "wsj"}.
        A run with other files is the same experiment, one with the config's default is not.
    """

    config: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    def load(self) -> ml_collections.ConfigDict:
        """The config.

        Raises:
          ConfigError: there is no such config, or it has no key of a change.
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
        """Flags of train.py, without those that name files."""
        changes = (f"--config.{key}={value}" for key, value in self.changes.items())
        return [f"--config={self.config}", *changes]

    def folder(self) -> str:
        """Where its run goes, below the folder of all runs."""
        path, _, variant = self.config.partition(":")
        changes = (f"{key.rpartition('.')[2]}={value}" for key, value in self.changes.items())
        parts = pathlib.Path(path).with_suffix("").parts[1:]
        return "-".join(["/".join(parts), *filter(None, [variant]), *changes])


# The same for all columns, or one for each.
Experiments = Experiment | tuple[Experiment | None, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Where a JSON file that `benchmarks/` wrote has a number.

    Attributes:
      command: that writes it.
      results: name of the list of results.
      candidate: key that `Row.candidate` is a value of.
      value: key of the number.
      facts: what the file has to say of itself: {"dataset": "mnist"}.
      where: what the result has to be: {"batch": 1}.
      devices: "cpu", or "accelerator" for any other; None for all.
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
    """One measure.

    Attributes:
      metric: of the evaluation of a run; None if no run has it.
      reduced_metric: of the reduced twin, where it is another one.
      split: that the metric is of.
      better: "lower" or "higher".
      scale: the column is `scale` times the metric: 100 for percent.
      digits: after the point.
      benchmark: has the column, instead of runs.
      mean_of: names of columns that this one is the mean of.
      tolerance: how far a repetition may be from the published number; a judgement, since the
        papers have one run each.
      reason: why nothing measures it.
    """

    name: str
    unit: str = ""
    metric: str | None = None
    reduced_metric: str | None = None
    split: str = "test"
    better: str = "lower"
    scale: float = 1.0
    digits: int | None = None
    benchmark: Benchmark | None = None
    mean_of: tuple[str, ...] = ()
    tolerance: float | None = None
    reason: str = ""

    def metric_at(self, scale: str) -> str | None:
        return (self.reduced_metric if scale == REDUCED else None) or self.metric


@dataclasses.dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
      published: a value for each column.
      paper, reduced: experiments in the paper's setting, and in one for small machines.
      candidate: of benchmarks.
      reason: why there is no experiment in the paper's setting.
    """

    name: str
    published: tuple[Published, ...]
    paper: Experiments = None
    reduced: Experiments = None
    candidate: str | None = None
    reason: str = ""

    def experiment(self, column: int, scale: str) -> Experiment | None:
        """The one that fills a column, by its number."""
        experiments = self.paper if scale == PAPER else self.reduced
        return experiments[column] if isinstance(experiments, tuple) else experiments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a paper, or the curves of a figure.

    Attributes:
      source: paper and number of the table.
      note: what a reader must know of it.
      curves: the picture shows the first column by step instead of bars.
      pictures: that other commands drew beside the document of all tables: file, what it shows.
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
    """All tables, as `katharopoulos2020/table1`."""
    folder = pathlib.Path(shipped_configs.find(FOLDER))
    files = [*folder.glob("*/table*.py"), *folder.glob("*/figure*.py")]
    names = (str(file.relative_to(folder).with_suffix("")) for file in files)
    return sorted(names, key=lambda name: [int(x) if x.isdigit() else x for x in _parts(name)])


def load_table(name: str) -> Table:
    """One table.

    Raises:
      ConfigError: there is no such table.
    """
    names = table_names()
    if name not in names:
        raise ConfigError(f"--table={name}: the tables are {', '.join(names)}")
    return _import(f"{FOLDER}/{name}.py").TABLE


def _parts(name: str) -> list[str]:
    """Words and numbers in turn, so that table 10 comes after table 9."""
    return re.split(r"(\d+)", name)


def _import(path: str) -> Any:
    shipped_configs.make_importable()
    try:
        return importlib.import_module(path.removesuffix(".py").replace("/", "."))
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: cannot be imported ({error})") from error
