"""Comparison of runs: a metric against steps, length or an option, as a picture and a table.

    python -m linear_transformer.analysis.curves --runs='runs/recall/mqar-*' --output=mqar.png
    python -m linear_transformer.analysis.curves --runs='runs/recall/parity-*' --by=length
    python -m linear_transformer.analysis.curves --runs='runs/recall/mqar-*' --by=pairs

The program reads `metrics.jsonl` in each folder.  `--by=step` draws every evaluation; `--by=length`
draws `accuracy_at_<length>` of the last evaluation.  Any other value is the name of an option in
`config.data.evaluation_options`: the program draws `accuracy_at_length_<length>_<option>_<value>`.
The table is Markdown.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from linear_transformer.errors import ConfigError
from linear_transformer.reports.markdown import markdown_table
from linear_transformer.runtime import program
from linear_transformer.runtime.pictures import label_lines, new_figure, save_figure
from linear_transformer.training.metrics import read_metrics

Points = list[tuple[int, float]]

HEADLINES = ("accuracy", "bits_per_byte", "bits_per_dim", "nats_per_event", "perplexity", "loss")


def read_runs(patterns: Sequence[str], split: str) -> dict[str, list[dict[str, Any]]]:
    """Reads the records of a split, by the name of the run's folder, or its path if names repeat.

    Raises:
      ConfigError: a pattern matches no folder, or a folder has no records of the split.
    """
    runs = {}
    folders = run_folders(patterns)
    names = [folder.name for folder in folders]
    for folder in folders:
        records = [r for r in read_metrics(folder) if r["split"] == split]
        if not records:
            raise ConfigError(f"--runs: {folder} has no metrics of the split {split}")
        runs[folder.name if names.count(folder.name) == 1 else str(folder)] = records
    return runs


def run_folders(patterns: Sequence[str]) -> list[epath.Path]:
    """Returns the folders of `--runs`.

    Args:
      patterns: paths of folders; the last part of a path may have `*` and `?`.

    Raises:
      ConfigError: a pattern matches no folder.
    """
    folders = []
    for pattern in patterns:
        path = epath.Path(pattern)
        found = sorted(f for f in path.parent.glob(path.name) if f.is_dir())
        if not found:
            raise ConfigError(f"--runs={pattern}: no such folder")
        folders += found
    return folders


def by_step(records: list[dict[str, Any]], metric: str) -> Points:
    """Returns (step, metric) of every record that has the metric, a number."""
    return [(r["step"], r[metric]) for r in records if isinstance(r.get(metric), int | float)]


def by_length(records: list[dict[str, Any]], metric: str) -> Points:
    """Returns (length, metric) of the last record, from its entries `<metric>_at_<length>`."""
    names = re.compile(re.escape(metric) + r"_at_(\d+)")
    matches = ((names.fullmatch(name), value) for name, value in records[-1].items())
    return sorted((int(match[1]), value) for match, value in matches if match)


def by_option(records: list[dict[str, Any]], metric: str, option: str) -> Points:
    """Returns (option value, metric) of the last record; the longest length takes precedence."""
    names = re.compile(rf"{re.escape(metric)}_at_length_(\d+)_{re.escape(option)}_(\d+)")
    matches = ((names.fullmatch(name), value) for name, value in records[-1].items())
    points = sorted((int(match[1]), int(match[2]), value) for match, value in matches if match)
    return sorted({x: value for _, x, value in points}.items())


def markdown(curves: dict[str, Points], by: str) -> str:
    """Returns a Markdown table, one row per run: the last step, or all lengths or options."""
    if by == "step":
        rows = [
            (name, f"{points[-1][0]:,}", f"{points[-1][1]:.4f}") for name, points in curves.items()
        ]
        head = ("run", "step", "value")
    else:
        values = sorted({x for points in curves.values() for x, _ in points})
        head = ("run", *map(str, values))
        rows = [
            (name, *(f"{dict(points)[x]:.4f}" if x in dict(points) else "" for x in values))
            for name, points in curves.items()
        ]
    return markdown_table(head, rows, "r")


def headline(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the first of `HEADLINES` that all runs have.

    Raises:
      ConfigError: they have none in common.
    """
    for metric in HEADLINES:
        if all(any(metric in record for record in records) for records in runs.values()):
            return metric
    raise ConfigError(f"--metric: {', '.join(runs)} have none of {', '.join(HEADLINES)} in common")


def plot(
    curves: dict[str, Points],
    by: str,
    metric: str,
    output: epath.Path,
    chance: float | None = None,
) -> None:
    """Draws a line for each run; the axis of lengths and options is logarithmic.

    The title is what the names begin with, up to a hyphen; each line ends in the other parts.

    Args:
      chance: value that guessing reaches, drawn as a dotted line; None for no line.
    """
    shared = _shared(list(curves))
    figure, ((axes,),) = new_figure(size=(7, max(3.6, 0.2 * len(curves))), title=shared[:-1])
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name.removeprefix(shared))
    if chance is not None:
        axes.axhline(chance, color="grey", linestyle=":", marker="", label="chance")
    axes.set(xlabel=by, ylabel=metric.replace("_", " "))
    if by != "step":
        axes.set_xscale("log", base=2)
    label_lines(axes)
    save_figure(figure, output)


def _shared(names: Sequence[str]) -> str:
    """Returns the parts with hyphens with which all names begin; every name is longer."""
    parts = zip(*(name.split("-")[:-1] for name in names), strict=False)
    same = itertools.takewhile(lambda part: len(set(part)) == 1, parts)
    return "".join(f"{part[0]}-" for part in same)


def _define_flags() -> None:
    flags.DEFINE_multi_string("runs", None, "Folders of runs; may be given again.", required=True)
    flags.DEFINE_string(
        "metric", None, f"Name of the metric; by default the first of {', '.join(HEADLINES)}."
    )
    flags.DEFINE_float("chance", None, "Value that guessing reaches, for a dotted line.")
    flags.DEFINE_string("split", "validation", "Split of the metric.")
    flags.DEFINE_string("by", "step", "What it is drawn against: step, length or an option.")
    flags.DEFINE_string("output", None, "A PNG file.")


def main() -> None:
    values = flags.FLAGS
    readers = {"step": by_step, "length": by_length}
    read = readers.get(values.by, functools.partial(by_option, option=values.by))
    runs = read_runs(values.runs, values.split)
    metric = values.metric or headline(runs)
    curves = {name: read(records, metric) for name, records in runs.items()}
    for name, points in curves.items():
        if not points:
            raise ConfigError(f"--metric={metric}: {name} has no such metric by {values.by}")
    print(markdown(curves, values.by))
    if values.output:
        plot(curves, values.by, metric, epath.Path(values.output), values.chance)


if __name__ == "__main__":
    _define_flags()
    program.run(main)
