"""Figures in one style: their panels, the labels of lines, and the file."""

from typing import Any

import numpy as np
from etils import epath

from linear_transformer.errors import UserError

_GAP = 1.25  # distance of two labels, in heights of a letter
_NEAR = 0.03  # lines that end so near to each other, in widths of the panel, share a column


def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[int | float, int | float],
    title: str = "",
    **options: Any,
) -> tuple[Any, Any]:
    """Returns a matplotlib figure and the array (rows, columns) of its panels.

    Args:
      rows: panels from top to bottom.
      columns: panels from left to right.
      size: width and height in inches.
      title: what was measured, and where.
      **options: options of `matplotlib.figure.Figure.subplots`.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    markers = cycler(marker=["o"], markersize=[3])
    cycle = matplotlib.rcParamsDefault["axes.prop_cycle"] * markers
    style: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.prop_cycle": cycle,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "grid.alpha": 0.3,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, fontsize="medium")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def label_lines(axes: Any) -> None:
    """Writes the label of each line at its last finite point, in the colour of the line.

    Labels that would overlap move up or down by equal distances.  A line without a finite point has
    no label.  The limits and scales of the axes must be final.
    """
    columns: dict[int, list[tuple[float, float, Any]]] = {}
    axes.autoscale_view()
    for line in axes.get_lines():
        points = (line.get_transform() - axes.transAxes).transform(line.get_xydata())
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) and not line.get_label().startswith("_"):
            x, y = points[-1]
            columns.setdefault(round(x / _NEAR), []).append((y, x, line))
    panel_points = 72 * axes.figure.get_figheight() * axes.get_position().height
    for ends in columns.values():
        ends.sort(key=lambda end: end[0])
        size = 8
        heights = _spread([y for y, _, _ in ends], _GAP * size / panel_points)
        for (_, x, line), y in zip(ends, heights, strict=True):
            axes.annotate(
                line.get_label(),
                (x, y),
                xycoords=axes.transAxes,
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=line.get_color(),
                fontsize=size,
                annotation_clip=False,
            )


def _spread(wanted: list[float], gap: float) -> list[float]:
    """Returns rising positions with a distance of at least `gap`, near the rising wanted ones."""
    groups: list[tuple[float, int]] = []  # middle of a group of touching labels, their number
    for position in wanted:
        groups.append((position, 1))
        while len(groups) > 1:
            (low, below), (high, above) = groups[-2:]
            if high - low >= gap * (below + above) / 2:
                break
            count = below + above
            groups[-2:] = [((low * below + high * above) / count, count)]
    return [
        middle + gap * (index - (count - 1) / 2)
        for middle, count in groups
        for index in range(count)
    ]


def save_figure(figure: Any, path: epath.Path) -> None:
    """Writes a PNG.

    Raises:
      UserError: the file can't be written.
    """
    try:
        with path.open("wb") as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
