"""Scorecard: every mechanism on the same small tasks, beside its size and speed.

    python -m linear_transformer.scorecard --output=docs/scorecard.md
    python -m linear_transformer.scorecard --launch --cores=1 --rates=1
    python -m linear_transformer.scorecard --launch --names=gla,kda --tasks=mqar --dry_run

`--launch` first runs what is missing (configs/scorecard/task.py): all tasks of all mechanisms with
the first learning rate, then with the second and the third, or with the first `--rates` of them.
Runs that were stopped go on.  A cell has the best learning rate.  Sizes and speeds are from the
newest files of `python -m benchmarks.mechanisms`, and the work on a TPU from those of
`python -m benchmarks.mechanisms_on_tpu`, in the folder of runs, in docs/results/records or in
build/benchmarks.  `--output` writes the table, beside it a page whose table can be sorted (.html)
and, if sizes of states are known, a picture (.png).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from linear_transformer.config import shipped_configs
from linear_transformer.errors import ConfigError, RunError
from linear_transformer.reports import cells, launch
from linear_transformer.reports.cells import Cell
from linear_transformer.reports.markdown import markdown_table
from linear_transformer.reports.page import Entry, sortable_page
from linear_transformer.reports.runs import Found
from linear_transformer.reports.tables import PAPER, Column, Experiment, Row, Table
from linear_transformer.runtime import environment, program
from linear_transformer.runtime.pictures import new_figure, save_figure

shipped_configs.make_importable()
from configs import mechanisms  # noqa: E402
from configs.scorecard import task as tasks  # noqa: E402

RATE = "optimizer.learning_rate"
BITS = {"better": "lower", "digits": 3, "split": "validation"}
ACCURACY = {
    "better": "higher",
    "enough": tasks.SOLVED,
    "digits": 1,
    "scale": 100.0,
    "split": "validation",
}
# Task of the run and column.
COLUMNS = (
    ("shakespeare", Column("Shakespeare, bits/byte", metric="bits_per_byte", **BITS)),
    ("shakespeare", Column("at 8x the context", metric="bits_per_byte_at_1024", **BITS)),
    ("mqar", Column("MQAR, %", metric="accuracy", **ACCURACY)),
    ("selective_copying", Column("selective copying, %", metric="accuracy", **ACCURACY)),
    ("parity", Column("parity of 256, %", metric="accuracy_at_256", **ACCURACY)),
    ("s3", Column("S3 of 128, %", metric="accuracy_at_128", **ACCURACY)),
)
# Key of the benchmarks' rows and name of the column.
_FACTS = {
    "parameters": "parameters",
    "state bytes": "state bytes",
    "training tokens/s": "training tokens/s",
    "decoding tokens/s": "decoding tokens/s",
    "FLOPs/token": "FLOPs/token, TPU",
    "HBM bytes/token": "HBM bytes/token, TPU",
}
_HEADINGS = ("mechanism", *(column.name for _, column in COLUMNS), *_FACTS.values())
_NOT_RUN = "not run"
_CHOSEN = "best of"  # beginning of a cell's remark on the winning point of its grid


def table(names: Sequence[str], only: Sequence[str], rates: Sequence[float]) -> Table:
    """Returns the table of some mechanisms and tasks, each run a grid of learning rates."""
    columns = [(task, column) for task, column in COLUMNS if task in only]

    def experiment(task: str, name: str) -> Experiment:
        return Experiment(f"configs/scorecard/task.py:{task},{name}", grid={RATE: tuple(rates)})

    return Table(
        title="Scorecard",
        source="this project",
        columns=tuple(column for _, column in columns),
        rows=tuple(
            Row(
                name,
                (None,) * len(columns),
                paper=tuple(experiment(task, name) for task, _ in columns),
            )
            for name in names
        ),
    )


def _benchmarks(found: Found) -> list[dict[str, Any]]:
    """Returns the contents of the files with sizes, speeds or work, the oldest first."""
    files = (file.content for file in found.benchmarks if "mechanisms" in file.content["results"])
    return sorted(files, key=lambda content: content.get("date", ""))


@dataclasses.dataclass(frozen=True)
class Scorecard:
    """Cells and facts of all mechanisms.

    Attributes:
      rows: cells of each mechanism, in the order of `COLUMNS`.
      benchmarks: contents of files of benchmarks, the oldest first.
    """

    rows: dict[str, list[Cell]]
    benchmarks: list[dict[str, Any]]

    @classmethod
    def read(cls, found: Found) -> "Scorecard":
        filled = cells.fill(table(mechanisms.NAMES, tasks.TASKS, tasks.RATES), found)
        rows = {name: [c for c in filled if c.row.name == name] for name in mechanisms.NAMES}
        ranked = sorted(rows.items(), key=lambda row: _quality(row[1]))
        return cls(dict(ranked), _benchmarks(found))

    @functools.cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Sizes, speeds and work by mechanism, each from the newest file that has it."""
        newest: dict[str, dict[str, Any]] = {}
        for content in self.benchmarks:
            for row in content["results"]["mechanisms"]:
                newest.setdefault(row["name"], {}).update(row)
        return newest

    def entries(self) -> list[list[Entry]]:
        """Returns the entries of the table, sorted by bits/byte."""
        return [
            [
                Entry(name, name),
                *map(_of_runs, row),
                *(_fact(self.facts.get(name, {}).get(fact)) for fact in _FACTS),
            ]
            for name, row in self.rows.items()
        ]

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        rows = [[f"`{e[0].text}`", *(entry.text for entry in e[1:])] for e in self.entries()]
        return markdown_table(_HEADINGS, rows, "r")

    def origin(self) -> str:
        """Returns sentences with the dates and machines of the runs and of the benchmarks."""
        runs = [run for row in self.rows.values() for cell in row for run in cell.runs]
        text = ""
        if made := [run.environment for run in runs if run.environment]:
            days = sorted({where["date"].split()[0] for where in made})
            machines = sorted({environment.machine(where) for where in made})
            when = " to ".join(dict.fromkeys((days[0], days[-1])))
            text = f"Runs: {when}, each on {' or '.join(machines)}.\n\n"
        for content in self.benchmarks:  # a later one replaces the values of an earlier one
            where = f"{content['date'].split()[0]}, {environment.machine(content)}"
            text += f"`{content['command']}`: {where}.\n\n"
        return text

    def plot(self, output: epath.Path) -> None:
        """Draws bits/byte against the size of the state, with the name beside each point."""
        title = "Shakespeare after 600 steps: quality against the size of the decoding state"
        figure, ((axes,),) = new_figure(size=(9, 6), title=title)
        for name, (bits, *_) in self.rows.items():
            size = self.facts.get(name, {}).get("state bytes")
            if bits.value is not None and size:
                axes.plot(size, bits.value, "o", color="tab:blue", markersize=4)
                offset = {"xytext": (4, 2), "textcoords": "offset points"}
                axes.annotate(name, (size, bits.value), fontsize="x-small", **offset)
        axes.set_xscale("log")
        axes.set(
            xlabel="state of one sequence in the benchmark's model, bytes (smaller is better)",
            ylabel="validation bits/byte (lower is better)",
        )
        save_figure(figure, output)


def _quality(row: list[Cell]) -> float:
    return float("inf") if row[0].value is None else row[0].value


def _of_runs(cell: Cell) -> Entry:
    """Formats the value and the winning learning rate of a cell."""
    if cell.value is None:
        return Entry(_NOT_RUN, None)
    rate = cell.remark.rpartition("learning_rate ")[2]
    measured = cell.remark.removeprefix(_CHOSEN).split()[0]
    of = "" if measured == str(len(tasks.RATES)) else f", of {measured}"
    text = f"{cell.value:.{cell.column.digits}f} ({float(rate):g}{of})"
    return Entry(text, cell.value, "; ".join(cell.sources).replace("`", ""))


def _fact(value: int | float | None) -> Entry:
    return Entry(_NOT_RUN if value is None else f"{value:,.0f}", value)


_HEAD = """# Scorecard

Every mechanism on the same small tasks: 2 layers of width 64, 600 steps, one seed, the best of the
learning rates {rates}, written in parentheses; "of 1" is a cell for which only one rate was run.
The tasks are those of configs/scorecard/task.py, and a cell is the result of this run:

    python train.py --config=configs/scorecard/task.py:TASK,NAME \\
        --config.optimizer.learning_rate=RATE

with the TASK shakespeare, mqar, selective_copying, parity or s3.  Parameters, state and speeds are
those of the model of 4 layers of width 128 in `python -m benchmarks.mechanisms`.  FLOPs and HBM
bytes are those of its training step on one TPU v5e, which was only compiled
(`python -m benchmarks.mechanisms_on_tpu`).

A model that guesses has 12.5 % in MQAR (one of the values of a sequence), 7.1 % in selective
copying, 50 % in parity and 16.7 % in S3.

"""
_PAGE = (
    "Every mechanism on the same small tasks: 2 layers of width 64, 600 steps, one seed; in "
    "parentheses the best learning rate, and of how many if not of three. Sizes, speeds and work "
    "are those of 4 layers of width 128. scorecard.md describes the tasks."
)


def _define_flags() -> None:
    flags.DEFINE_list("names", list(mechanisms.NAMES), "Mechanisms that --launch runs.")
    flags.DEFINE_list("tasks", list(tasks.TASKS), "Tasks that --launch runs.")
    flags.DEFINE_integer("rates", len(tasks.RATES), "Number of learning rates, the best first.", 1)
    flags.DEFINE_bool("launch", False, "Run what is missing.")
    flags.DEFINE_bool("dry_run", False, "For --launch: print what would run.")
    flags.DEFINE_integer("cores", 0, "For --launch: cores that the runs may use; 0 is all.", 0)
    flags.DEFINE_bool("keep", False, "Copy the runs of the table to docs/results/records.")
    flags.DEFINE_string("runs", "runs", "Folder of runs, searched with all below it.")
    flags.DEFINE_string("output", None, "Markdown file to write, with a picture beside it.")


def main() -> None:
    values = flags.FLAGS
    for flag, given, allowed in (
        ("names", values.names, mechanisms.NAMES),
        ("tasks", values.tasks, tasks.TASKS),
    ):
        for name in given:
            if name not in allowed:
                raise ConfigError(f"--{flag}={name}: choose from {', '.join(allowed)}")
    if values.output and pathlib.Path(values.output).suffix != ".md":
        raise ConfigError(f"--output={values.output}: the name must end in .md")
    folder, failures = pathlib.Path(values.runs).expanduser(), []
    if values["runs"].present and not values.launch and not folder.is_dir():
        raise ConfigError(f"--runs={values.runs}: no such folder")
    if values.launch:
        launch.limit_cores(values.cores)
        grids = [tasks.RATES[: n + 1] for n in range(min(values.rates, len(tasks.RATES)))]
        wanted = [table(values.names, values.tasks, grid) for grid in grids]
        failures = launch.run_missing(wanted, PAPER, folder, {}, dry_run=values.dry_run)
    found = launch.search(folder)
    scorecard = Scorecard.read(found)
    if values.keep:
        launch.keep(table(mechanisms.NAMES, tasks.TASKS, tasks.RATES), found, folder)
    text = _HEAD.format(rates=", ".join(f"{r:g}" for r in tasks.RATES))
    print(text := text + scorecard.origin() + scorecard.markdown())
    if values.output:
        path = pathlib.Path(values.output)
        page = sortable_page("Scorecard", _PAGE, _HEADINGS, scorecard.entries())
        launch.write_text(page, path.with_suffix(".html"))
        if scorecard.facts:
            picture = path.with_suffix(".png")
            scorecard.plot(epath.Path(picture))
            text += f"\n\n![bits per byte against state size]({picture.name})"
        text += f"\n\n[The same table, to be sorted]({path.with_suffix('.html').name})"
        launch.write_text(f"{text}\n", path)
    if failures:
        raise RunError(f"{len(failures)} failed, the first: {failures[0]}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
