"""Runs side by side: a metric against steps or against length, as a picture and a table.

    python -m linear_transformer.analysis.curves --runs='runs/recall/mqar-*' --output=mqar.png
    python -m linear_transformer.analysis.curves --runs='runs/recall/parity-*' --by=length

Reads the `metrics.jsonl` that train.py leaves in each folder.  `--by=step` draws every evaluation,
`--by=length` the numbers `accuracy_at_<length>` of the last one.  The table is Markdown.
"""

import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from linear_transformer import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.training.metrics import read_metrics

Points = list[tuple[int, float]]


def read_runs(patterns: Sequence[str], split: str) -> dict[str, list[dict[str, Any]]]:
    """Records of a split by the name of the run's folder.

    Args:
      patterns: folders, or their last parts with `*` and `?`.

    Raises:
      ConfigError: a pattern that fits no folder, or a folder without such records.
    """
    folders = []
    for pattern in patterns:
        path = epath.Path(pattern)
        found = sorted(f for f in path.parent.glob(path.name) if f.is_dir())
        if not found:
            raise ConfigError(f"--runs={pattern}: no such folder")
        folders += found
    runs = {}
    for folder in folders:
        records = [r for r in read_metrics(folder) if r["split"] == split]
        if not records:
            raise ConfigError(f"--runs: {folder} has no metrics of the split {split}")
        runs[folder.name] = records
    return runs


def by_step(records: list[dict[str, Any]], metric: str) -> Points:
    """(step, metric) of every record that has it."""
    return [(r["step"], r[metric]) for r in records if metric in r]


def by_length(records: list[dict[str, Any]], metric: str) -> Points:
    """(length, metric) of the last record, from its entries `<metric>_at_<length>`."""
    names = re.compile(re.escape(metric) + r"_at_(\d+)")
    matches = ((names.fullmatch(name), value) for name, value in records[-1].items())
    return sorted((int(match[1]), value) for match, value in matches if match)


def markdown(curves: dict[str, Points], by: str) -> str:
    """A row for each run: its last point by step, or every point by length."""
    if by == "step":
        rows = [
            (name, f"{points[-1][0]:,}", f"{points[-1][1]:.4f}") for name, points in curves.items()
        ]
        head = ("run", "step", "value")
    else:
        lengths = sorted({x for points in curves.values() for x, _ in points})
        head = ("run", *map(str, lengths))
        rows = [
            (name, *(f"{dict(points)[x]:.4f}" if x in dict(points) else "" for x in lengths))
            for name, points in curves.items()
        ]
    rule = ("---", *["---:"] * (len(head) - 1))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def plot(curves: dict[str, Points], by: str, metric: str, output: epath.Path) -> None:
    """Draws a line for each run; lengths on a logarithmic axis."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name, marker="o", markersize=3)
    axes.set(xlabel=by, ylabel=metric.replace("_", " "))
    if by == "length":
        axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        with output.open("wb") as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be written ({error.strerror})") from error
    finally:
        plt.close(figure)


def _define_flags() -> None:
    flags.DEFINE_multi_string("runs", None, "Folders of runs; may be given again.", required=True)
    flags.DEFINE_string("metric", "accuracy", "Name of the metric.")
    flags.DEFINE_string("split", "validation", "Split of the metric.")
    flags.DEFINE_enum("by", "step", ["step", "length"], "What the metric is drawn against.")
    flags.DEFINE_string("output", None, "A PNG file.")


def main() -> None:
    values = flags.FLAGS
    read = by_step if values.by == "step" else by_length
    runs = read_runs(values.runs, values.split)
    curves = {name: read(records, values.metric) for name, records in runs.items()}
    for name, points in curves.items():
        if not points:
            raise ConfigError(f"--metric={values.metric}: {name} has no such metric by {values.by}")
    print(markdown(curves, values.by))
    if values.output:
        plot(curves, values.by, values.metric, epath.Path(values.output))


if __name__ == "__main__":
    _define_flags()
    configuration.run(main)
