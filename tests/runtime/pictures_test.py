"""Labels of lines: beside the end of their line, and readable."""

import itertools
import math

import pytest
from matplotlib.colors import to_hex

from linear_transformer.runtime.pictures import label_lines, new_figure


def drawn(ends):
    """A line for each end; returns the axes and the boxes of the labels, from bottom to top."""
    figure, ((axes,),) = new_figure(size=(6, 4), title="ends")
    for name, end in ends.items():
        axes.plot([1, 10, 100], [0.0, 0.5, end], label=name)
    axes.set_xscale("log")
    label_lines(axes)
    figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    return axes, boxes


def test_a_label_stands_at_the_end_of_its_line_in_its_colour():
    axes, boxes = drawn({"low": 0.1, "high": 0.9})
    assert list(boxes) == ["low", "high"]
    for text, line in zip(axes.texts, axes.get_lines(), strict=True):
        x, y = axes.transData.transform(line.get_xydata()[-1])
        box = boxes[text.get_text()]
        assert 0 < box.x0 - x < 20
        assert abs((box.y0 + box.y1) / 2 - y) < 3
        assert to_hex(text.get_color()) == to_hex(line.get_color())


@pytest.mark.parametrize("end", [math.nan, math.inf, -math.inf])
def test_a_line_that_ends_beyond_numbers(end):
    """As the loss of a run that diverged; the label stands at the last number."""
    axes, boxes = drawn({"diverged": end, "trained": 0.9})
    x, y = axes.transData.transform((10, 0.5))
    assert abs(boxes["diverged"].x0 - x) < 20 and abs(boxes["diverged"].y0 - y) < 20
    axes.plot([1, 2], [end, end], label="never")
    label_lines(axes)
    assert "never" not in {text.get_text() for text in axes.texts}


def test_labels_of_equal_ends_do_not_overlap():
    ends = {f"line {i}": end for i, end in enumerate((0.5, 0.5, 0.51, 0.52, 0.1, 0.9))}
    _, boxes = drawn(ends)
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))
    names = sorted(boxes, key=lambda name: boxes[name].y0)
    assert [ends[name] for name in names] == sorted(ends.values())
