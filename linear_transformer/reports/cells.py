"""Cells of a table: published and measured numbers, with the command and machine of each."""

import dataclasses
import statistics

from linear_transformer.reports.runs import Found, Run
from linear_transformer.reports.tables import (
    PAPER,
    REDUCED,
    Column,
    Experiment,
    Published,
    Row,
    Table,
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Cell of a table: one number.

    Attributes:
      scale: PAPER or REDUCED; None if no experiment of the table was run.
      values: one value for each seed, in the unit of the column.
      sources: footnotes, as Markdown: the origin of each value, or remarks on it.
      runs: runs that gave the values.
      remark: note on the values; without values, how to measure them or why nothing measures them.
    """

    row: Row
    column: Column
    published: Published
    scale: str | None = None
    values: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    remark: str = ""

    @property
    def value(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def difference(self) -> float | None:
        """Difference measured - published, or ratio for benchmarks; None if not at paper scale."""
        value = self.value
        if value is None or self.scale != PAPER or not isinstance(self.published, int | float):
            return None
        return value / self.published if self.column.benchmark else value - self.published


def fill(table: Table, found: Found) -> list[Cell]:
    """Returns all cells, row by row; runs at paper scale take precedence over reduced twins."""
    cells = []
    for row in table.rows:
        filled = [_fill(row, number, column, found) for number, column in enumerate(table.columns)]
        cells += [_mean(cell, filled) if cell.column.mean_of else cell for cell in filled]
    return cells


def experiments(table: Table, scale: str) -> list[tuple[Row, Column, Experiment]]:
    """Returns row, column and experiment of each cell at a scale; a grid is one experiment."""
    return [
        (row, column, experiment)
        for row in table.rows
        for number, column in enumerate(table.columns)
        if column.metric and (experiment := row.experiment(number, scale))
    ]


def complete(column: Column, experiment: Experiment, scale: str, found: Found) -> bool:
    """Returns whether a point of a grid has reached the value that is enough for the column."""
    metric = column.metric_at(scale)
    if not experiment.grid or metric is None:
        return False
    runs = (run for point in experiment.points() for run in found.of(point) if run.finished)
    values = (run.value(column.split, metric) for run in runs)
    return any(value and column.is_enough(value[0]) for value in values)


def _fill(row: Row, number: int, column: Column, found: Found) -> Cell:
    empty = Cell(row, column, row.published[number], remark=_how_to_run(row, number, column))
    if column.benchmark:
        return _from_benchmarks(empty, found)
    for scale in (PAPER, REDUCED):
        experiment, metric = row.experiment(number, scale), column.metric_at(scale)
        if experiment is None or metric is None:
            continue
        points = experiment.points()
        filled = [(_of_runs(empty, point, metric, found), point) for point in points]
        measured = [(cell.value, cell, point) for cell, point in filled if cell.value is not None]
        if measured:
            choose = max if column.better == "higher" else min
            _, best, point = choose(measured, key=lambda entry: entry[0])
            remarks = [metric.replace("_", " ")] if metric != column.metric else []
            if experiment.grid:
                changes = " ".join(
                    f"{key.rpartition('.')[2]} {point.changes[key]}" for key in experiment.grid
                )
                remarks.append(f"best of {len(measured)} of {len(points)} points: {changes}")
            return dataclasses.replace(best, scale=scale, remark=", ".join(remarks))
    return empty


def _of_runs(empty: Cell, experiment: Experiment, metric: str, found: Found) -> Cell:
    """Fills a cell from the runs of one experiment."""
    column = empty.column
    values, sources, runs = [], [], []
    for run in found.of(experiment):
        if run.finished and (measured := run.value(column.split, metric)):
            value, evaluated = measured
            source = f"`{run.command(found.config(experiment), experiment)}`"
            if evaluated:
                source += f", `python eval.py --workdir={run.workdir} --split={column.split}`"
            values.append(column.scale * value)
            sources.append(f"{source}, {run.made()}, {run.seconds:,.0f} s of training steps")
            runs.append(run)
    return dataclasses.replace(
        empty, values=tuple(values), sources=tuple(sources), runs=tuple(runs)
    )


def _how_to_run(row: Row, number: int, column: Column) -> str:
    """Returns the command for a cell, or the reason why there is none; a mean has neither."""
    if column.benchmark and row.candidate:
        return f"`{column.benchmark.command}`"
    if column.metric is None:
        return ""
    if paper := row.experiment(number, PAPER):
        return _arguments(paper)
    reduced = row.experiment(number, REDUCED)
    twin = f"reduced: {_arguments(reduced)}" if reduced else ""
    return "; ".join(filter(None, (row.reason, twin)))


def _arguments(experiment: Experiment) -> str:
    """Returns the flags of train.py as Markdown, with the values of a grid."""
    text = f"`{' '.join(experiment.arguments())}`"
    grid = (f"{key} in {values}" for key, values in experiment.grid.items())
    return ", ".join((text, *grid))


def _from_benchmarks(empty: Cell, found: Found) -> Cell:
    """Fills a cell from the newest file, with its best row (rows differ in batch size)."""
    benchmark, candidate = empty.column.benchmark, empty.row.candidate
    if benchmark is None or candidate is None:
        return empty
    best = max if empty.column.better == "higher" else min
    for scale in (PAPER, REDUCED):
        files = [f for f in found.benchmarks if f.scale == scale and f.rows(benchmark, candidate)]
        if not files:
            continue
        newest = max(files, key=lambda file: file.content.get("date", ""))
        row = best(newest.rows(benchmark, candidate), key=lambda row: row[benchmark.value])
        value = float(row[benchmark.value])
        remark = ", ".join(
            str(part)
            for part in (f"batch {row['batch']}" if "batch" in row else "", row.get("how", ""))
            if part
        )
        return dataclasses.replace(
            empty, scale=scale, values=(value,), sources=(newest.source(),), remark=remark
        )
    return empty


def _mean(cell: Cell, row: list[Cell]) -> Cell:
    """Fills a cell with the mean of other cells if all were measured at the same scale."""
    parts = [part for part in row if part.column.name in cell.column.mean_of]
    scales = {part.scale for part in parts}
    if len(scales) != 1 or None in scales:
        return cell
    mean = statistics.fmean(part.value for part in parts if part.value is not None)
    return dataclasses.replace(cell, scale=scales.pop(), values=(mean,), remark="of this row")
