"""Draws docs/pathfinder.png: images of each difficulty with the discs on one contour, and on two.

python -m docs.pathfinder
"""

import pathlib

import matplotlib.figure
import numpy as np

from linear_transformer.data.pathfinder.dataset import CONTOUR_LENGTHS
from linear_transformer.data.pathfinder.images import draw
from linear_transformer.data.pathfinder.paddles import SETTINGS

PICTURE = pathlib.Path(__file__).with_suffix(".png")
COLUMNS = ((32, "easy"), (32, "intermediate"), (32, "hard"), (128, "hard"))


def picture() -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure(figsize=(11, 5.8), layout="constrained")
    rows = figure.subplots(2, len(COLUMNS))
    for axes, (size, difficulty) in zip(rows.T, COLUMNS, strict=True):
        drawn = draw(SETTINGS[size], CONTOUR_LENGTHS[difficulty], 8, np.random.default_rng(1))
        for label, one in zip((1, 0), axes, strict=True):
            one.imshow(drawn.images[drawn.labels == label][0], cmap="gray", vmin=0, vmax=255)
            one.set(xticks=[], yticks=[], title=f"{size} pixels, {difficulty}: class {label}")
            one.title.set_fontsize(10)
    return figure


if __name__ == "__main__":
    picture().savefig(PICTURE, dpi=110)
