"""Generator of Pathfinder images: two long contours, short distractors, two discs on contour ends.

The class is 1 if both discs are on one contour, else 0.  Images have the distribution of the
published program (Linsley et al. 2018, "Learning long-range spatial dependencies with horizontal
gated recurrent units", arXiv:1805.08315) with the parameters of Long Range Arena (Tay et al. 2021,
arXiv:2011.04006).
"""

import dataclasses

import numpy as np
from jaxtyping import Int, UInt8

from linear_transformer.data.pathfinder.lanes import Contours, Field, grow
from linear_transformer.data.pathfinder.paddles import Paddles, Setting, disc

_GROUP = 100  # number of images that are drawn together


@dataclasses.dataclass(frozen=True)
class Drawn:
    """N images, and the contours and discs in them.

    Attributes:
      images: (N, S, S), grey levels.
      labels: (N,), 1 if both discs are on one contour, else 0.
      gaps: (N,), half of the distance between paddles, in pixels.
      contours: (N, 2, P, 3), the two long contours: direction, row and column of each paddle.
      discs: (N, 2, 2), row and column of the two discs.
    """

    images: UInt8[np.ndarray, "N S S"]
    labels: Int[np.ndarray, " N"]
    gaps: Int[np.ndarray, " N"]
    contours: Int[np.ndarray, "N 2 P 3"]
    discs: Int[np.ndarray, "N 2 2"]


def draw(setting: Setting, contour_length: int, count: int, rng: np.random.Generator) -> Drawn:
    """Draws `count` images with long contours of `contour_length` paddles."""
    gaps = rng.choice(setting.gaps, count)
    order, groups = [], []
    for gap in np.unique(gaps):
        paddles = Paddles(setting, int(gap))
        indices = np.flatnonzero(gaps == gap)
        for first in range(0, len(indices), _GROUP):
            order.append(indices[first : first + _GROUP])
            groups.append(_draw_group(setting, paddles, contour_length, len(order[-1]), rng))
    back = np.argsort(np.concatenate(order))
    images, labels, contours, discs = (np.concatenate(x)[back] for x in zip(*groups, strict=True))
    return Drawn(images, labels, gaps, contours, discs)


def _draw_group(
    setting: Setting, paddles: Paddles, length: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Draws images of one gap; returns images, labels, contours and discs as in `Drawn`."""
    lanes, contours = grow(setting, paddles, length, count, rng)
    side = setting.size + 2 * paddles.pad
    picture = Field(np.zeros((count, side, side), np.float32), paddles.pad)
    every = np.arange(count)
    _paint(picture, every, contours, setting.contrast * paddles.lines)
    for _ in range(setting.distractor_paddles // (length // 3)):
        found, distractors = lanes.add_distractor(length // 3, rng)
        _paint(picture, found, distractors, setting.distractor_contrast * paddles.lines)

    labels = rng.integers(2, size=count, dtype=np.int32)
    first = rng.integers(2, size=count)
    second = np.where(labels == 1, first, 1 - first)
    discs = np.stack([contours[every, first, 0, 1:], contours[every, second, -1, 1:]], 1)
    marker = disc(setting.marker_radius)
    for end in range(2):
        picture.merge(every, discs[:, end], np.broadcast_to(marker, (count, *marker.shape)))
    levels = picture.inner()
    levels *= 255 / levels.max((1, 2), keepdims=True)  # the minimum is 0 in every image
    return np.rint(levels).astype(np.uint8), labels, contours, discs


def _paint(picture: Field, lanes: np.ndarray, contours: Contours, drawings: np.ndarray) -> None:
    """Draws every paddle of the contours in these lanes."""
    paddles = contours.reshape(len(contours), -1, 3)
    for placed in np.moveaxis(paddles, 1, 0):
        picture.merge(lanes, placed[:, 1:], drawings[placed[:, 0]].astype(np.float32))
