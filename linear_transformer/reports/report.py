"""Reports: a filled table as Markdown and as a picture, and the list of all tables."""

import itertools
import math
import pathlib
from collections.abc import Sequence

from etils import epath

from linear_transformer.reports import curves
from linear_transformer.reports.cells import Cell
from linear_transformer.reports.markdown import Footnotes, markdown_table
from linear_transformer.reports.tables import PAPER, REDUCED, Column, Published, Table
from linear_transformer.runtime.pictures import new_figure, save_figure

NOT_RUN = "not run"
_HEAD = ("row", "measure", "published", "measured", "difference", "how measured")
_COLORS = {"published": "0.7", PAPER: "tab:blue", REDUCED: "tab:orange"}
_LABELS = {  # speeds of different machines are side by side
    "published": "published, machine of the paper",
    PAPER: f"{PAPER}, machine of the table",
    REDUCED: f"{REDUCED}, machine of the table",
}
_LOGARITHMIC = 50  # ratio of the values of a panel above which its axis is logarithmic
_PANELS_ACROSS = 4  # a wider picture can't be read at the width of a page


def counts(cells: Sequence[Cell]) -> dict[str, int]:
    """Counts cells by scale, and cells without a published number; these groups overlap."""
    speeds = sum(cell.scale == PAPER and cell.column.benchmark is not None for cell in cells)
    return {
        "cells": len(cells),
        f"learned, {PAPER}": sum(cell.scale == PAPER for cell in cells) - speeds,
        f"speed, {PAPER}": speeds,
        REDUCED: sum(cell.scale == REDUCED for cell in cells),
        NOT_RUN: sum(cell.scale is None for cell in cells),
        "without a published number": sum(
            not isinstance(cell.published, int | float) for cell in cells
        ),
    }


def listing(tables: dict[str, list[Cell]]) -> str:
    """Returns a Markdown table with the counts of each table and their sums."""
    rows = [(name, *counts(cells).values()) for name, cells in tables.items()]
    total = ("all", *map(sum, zip(*(row[1:] for row in rows), strict=True)))
    head = ("table", *counts([]))
    return markdown_table(head, [tuple(map(str, row)) for row in (*rows, total)], "r")


def markdown(table: Table, cells: Sequence[Cell], *, part: str = "") -> str:
    """Returns a table as Markdown: one line per cell, then the sources.

    Args:
      table: the table.
      cells: its filled cells.
      part: name of the table if the document has several tables.
    """
    notes = Footnotes(part)
    lines = [
        (
            cell.row.name,
            f"{cell.column.name}, {cell.column.unit}" if cell.column.unit else cell.column.name,
            number(cell.published, cell.column.digits),
            _measured(cell),
            _difference(cell),
            _how(cell) + notes.marks(cell.sources),
        )
        for cell in cells
    ]
    summary = "; ".join(f"{count} {name}" for name, count in counts(cells).items())
    parts = [
        f"{'##' if part else '#'} {table.title}",
        f"{table.source}.  {table.note}".strip(),
        f"{summary}.",
    ]
    parts += [markdown_table(_HEAD, lines, "lrrrl"), *_orders(table, cells), str(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def number(value: Published, digits: int | None = None) -> str:
    """Formats a number with the given digits after the point; without digits, as published."""
    if value is None:
        return "-"
    if isinstance(value, str) or digits is None:
        return f"{value:,}" if isinstance(value, int | float) else value
    return f"{value:,.{digits}f}"


def _measured(cell: Cell) -> str:
    if cell.value is None:
        return NOT_RUN
    texts = [_four_digits(value, cell.column) for value in (cell.value, *sorted(cell.values))]
    if len(cell.values) == 1:
        return texts[0]
    return f"{texts[0]} (mean of {len(cell.values)}, {texts[1]} to {texts[-1]})"


def _four_digits(value: float, column: Column) -> str:
    if column.digits is not None or not math.isfinite(value):
        return number(value, column.digits)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(3 - magnitude, 0)}f}"


def _difference(cell: Cell) -> str:
    """Formats a ratio for benchmarks, else a difference and whether it is within tolerance."""
    if cell.difference is None:
        return ""
    if cell.column.benchmark:
        return f"x {cell.difference:.3g}"
    text = f"{cell.difference:+.{3 if cell.column.digits is None else cell.column.digits}f}"
    if cell.column.tolerance is None:
        return text
    within = "within" if abs(cell.difference) <= cell.column.tolerance else "beyond"
    return f"{text}, {within} {cell.column.tolerance:g}"


def _how(cell: Cell) -> str:
    if cell.scale:
        return f"{cell.scale}, {cell.remark}" if cell.remark else cell.scale
    return cell.remark


def _orders(table: Table, cells: Sequence[Cell]) -> list[str]:
    """Returns a sentence for each column on the pairs of rows that are in the published order."""
    sentences = []
    for column in table.columns:
        measured = [
            (cell.scale, cell.value, cell.published)
            for cell in cells
            if cell.column is column
            and cell.value is not None
            and isinstance(cell.published, int | float)
        ]
        pairs = [
            (value < other_value) == (published < other_published)
            for (scale, value, published), (other_scale, other_value, other_published) in (
                itertools.combinations(measured, 2)
            )
            if scale == other_scale and published != other_published
        ]
        if pairs:
            same = sum(pairs)
            sentences.append(
                f"{column.name}: {same} of {len(pairs)} pairs of measured rows are in the "
                "published order."
            )
    return sentences


def plot(table: Table, cells: Sequence[Cell], output: pathlib.Path) -> bool:
    """Draws bars for each column, or the curves of a figure.

    Returns:
      False if there is nothing to draw.

    Raises:
      UserError: the file cannot be written.
    """
    return (_plot_curves if table.curves else _plot_bars)(table, cells, output)


def _plot_curves(table: Table, cells: Sequence[Cell], output: pathlib.Path) -> bool:
    column = table.columns[0]
    drawn = {}
    for cell in cells:
        for run in cell.runs if cell.column is column else ():
            records = [r for r in run.records if r["split"] == column.split]
            name = f"{cell.row.name}, {cell.scale}, {run.folder.name}"
            metric = column.metric_at(cell.scale) if cell.scale else None
            if metric and (points := curves.by_step(records, metric)):
                drawn[name] = points
    if drawn and column.metric:
        curves.plot(drawn, "step", column.metric, epath.Path(output))
    return bool(drawn)


def _plot_bars(table: Table, cells: Sequence[Cell], output: pathlib.Path) -> bool:
    from matplotlib.patches import Rectangle

    bars = {
        column.name: _bars([c for c in cells if c.column is column]) for column in table.columns
    }
    bars = {name: found for name, found in bars.items() if found}
    if not bars:
        return False
    names = [row.name for row in table.rows]
    height = 0.9 + 0.34 * len(names)
    across = min(len(bars), _PANELS_ACROSS)
    down = math.ceil(len(bars) / across)
    figure, panels = new_figure(
        down, across, size=(1.8 + 2.3 * across, height * down), title=table.title, sharey=True
    )
    for axes in panels.flat[len(bars) :]:
        axes.set_axis_off()
    units = {column.name: column.unit for column in table.columns}
    for axes, (name, found) in zip(panels.flat, bars.items(), strict=False):
        for row, kind, value in found:
            offset = -0.2 if kind == "published" else 0.2
            axes.barh(names.index(row) + offset, value, 0.4, color=_COLORS[kind])
        values = [abs(value) for _, _, value in found if value]
        if values and max(values) > _LOGARITHMIC * min(values):
            axes.set_xscale("log")
        axes.set_title(name, fontsize="small")
        axes.set_xlabel(units[name], fontsize="small")
        axes.grid(visible=False, axis="y")
    panels[0, 0].set_yticks(range(len(names)), names)  # of all panels
    panels[0, 0].invert_yaxis()
    for axes in panels[:, 0]:
        axes.tick_params(axis="y", labelsize="small")
    kinds = {kind for found in bars.values() for _, kind, _ in found}
    handles = [Rectangle((0, 0), 1, 1, color=c) for k, c in _COLORS.items() if k in kinds]
    figure.legend(
        handles,
        [_LABELS[kind] for kind in _COLORS if kind in kinds],
        loc="outside lower center",
        ncols=len(kinds),
        fontsize="small",
    )
    save_figure(figure, epath.Path(output))
    return True


def _bars(cells: Sequence[Cell]) -> list[tuple[str, str, float]]:
    """Returns (row, kind, value) of one column, without twins that have another metric."""
    bars = []
    for cell in cells:
        if isinstance(cell.published, int | float):
            bars.append((cell.row.name, "published", float(cell.published)))
        if cell.scale is None or cell.value is None or not math.isfinite(cell.value):
            continue
        if cell.column.metric_at(cell.scale) == cell.column.metric:
            bars.append((cell.row.name, cell.scale, cell.value))
    return bars
