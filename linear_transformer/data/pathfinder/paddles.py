"""Settings of Pathfinder by image size, and the paddles of its contours.

A contour is a row of short lines, its paddles.  Their directions come from a small set, so each
drawing is made once and then looked up.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

SCALE = 2  # factor by which lines are drawn larger before they are reduced
SEED_DIRECTIONS = 360  # number of directions of a first paddle, in whole degrees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Parameters of one image size in Long Range Arena (Tay et al. 2021, arXiv:2011.04006).

    All lengths are in pixels.

    Attributes:
      size: side S of the square images.
      border: width of the margin that contours leave free.
      length, thickness: length and thickness of a paddle.
      gaps: possible values of half the distance between paddles; each image has one of them.
      seed_distance: distance between the first ends of the two long contours.
      marker_radius: radius of the two discs.
      continuity: straightness of contours; larger values give straighter contours.
      distractor_paddles: largest number of paddles in all distractors of an image.
      contrast, distractor_contrast: contrast of long contours and distractors; discs have 1.
    """

    size: int
    border: int
    length: int
    thickness: float
    gaps: tuple[int, ...]
    seed_distance: int
    marker_radius: float
    continuity: float
    distractor_paddles: int
    contrast: float
    distractor_contrast: float


_BY_SIZE: dict[str, tuple[Any, ...]] = {
    "size": (32, 64, 128, 256),
    "border": (1, 1, 1, 22),
    "length": (2, 5, 5, 5),
    "thickness": (0.5, 1.0, 1.5, 2.0),
    "gaps": ((1,), (1,), (2, 3), (3,)),
    "seed_distance": (7, 12, 20, 27),
    "marker_radius": (1.5, 2.5, 3.0, 5.0),
    "continuity": (1.0, 1.8, 1.8, 1.8),
    "distractor_paddles": (20, 22, 35, 30),
    "contrast": (1.5, 0.8, 0.9, 1.0),
    "distractor_contrast": (2.0, 0.8, 0.9, 1.0),
}
SETTINGS = {
    values[0]: Setting(**dict(zip(_BY_SIZE, values, strict=True)))
    for values in zip(*_BY_SIZE.values(), strict=True)
}


class Paddles:
    """Drawings of a paddle in each of R directions, and possible positions of the next paddle.

    Coordinates are (row, column); angles increase from columns to rows.  The first Q =
    SEED_DIRECTIONS directions belong to the first paddle, drawn from its tail to its head.  The
    other E directions belong to one of the `ends` each, a possible head of the next paddle, and
    are drawn backwards, from the head.  Drawings have levels 0 to 255, centred at the point where
    the drawing begins.

    Attributes:
      gap: half of the distance between the paddles of a contour, in pixels.
      pad: width of the border around an image that contains all drawings, in pixels.
      lines: (R, K, K), the paddle.
      masks: (R, K, K), space around the paddle: the line, thickened by the gap on each side.
      limits: (R, K, K), levels above which an existing mask overlaps the paddle too much.
      halos: (R, H, H), masks thickened by the gap once more; no paddle may end there.
      clearings: by seed direction, (n, 2) offsets that must be free around a tail.
      tails: by seed direction, (n, 2) possible tails of the first contour in an empty image: in the
        middle, and, as in the published program, at borders that are parallel to the paddle.
      heads: (Q, 2), exact offset from the tail to the head.
      backs: (Q, 2), exact offset from the head to the pivot, the point behind the tail around which
        the paddle rotates.
      steps: (R, 2), exact offset from a pivot to the next pivot.
      ends: (E, 2), offsets from a pivot to possible heads.
      weights: (R, E), weight of each end as a continuation of each direction.
    """

    gap: int
    pad: int
    lines: UInt8[np.ndarray, "R K K"]
    masks: UInt8[np.ndarray, "R K K"]
    limits: UInt8[np.ndarray, "R K K"]
    halos: UInt8[np.ndarray, "R H H"]
    clearings: list[Int[np.ndarray, "n 2"]]
    tails: list[Int[np.ndarray, "n 2"]]
    heads: Float[np.ndarray, "Q 2"]
    backs: Float[np.ndarray, "Q 2"]
    steps: Float[np.ndarray, "R 2"]
    ends: Int[np.ndarray, "E 2"]
    weights: Float[np.ndarray, "R E"]

    _OVERLAP: ClassVar[int] = 459  # 1.8 times 255: sum of two masks that is too large

    def __init__(self, setting: Setting, gap: int):
        self.gap, length = gap, setting.length
        seeds = (np.arange(SEED_DIRECTIONS) - 180) * np.pi / 180
        self.ends = _circle(length + gap)
        angles = np.concatenate([seeds, np.arctan2(self.ends[:, 0], self.ends[:, 1])])
        drawn = np.concatenate([seeds, _reverse(angles[SEED_DIRECTIONS:])])
        pairs = [_draw(angle, setting, gap) for angle in drawn]
        self.lines, self.masks = (np.stack(levels) for levels in zip(*pairs, strict=True))
        self.limits = np.minimum(self._OVERLAP - 1 - self.masks.astype(int), 255).astype(np.uint8)
        self.halos = np.stack([_thicken(np.pad(mask, gap), gap) for mask in self.masks])
        # A tail may be outside the image although its head is inside.
        self.pad = self.halos.shape[1] // 2 + length + 1
        # Clearings are shifted by one row and column, as in the published program.
        reach = self.masks.shape[1] // 2
        offsets = [np.argwhere(mask == 255) - reach + 1 for mask in self.masks[:SEED_DIRECTIONS]]
        self.clearings = [near[(abs(near) <= length + gap).all(1)] for near in offsets]
        outside = np.ones((setting.size, setting.size), bool)
        middle = slice(2 * setting.seed_distance, setting.size - 2 * setting.seed_distance)
        outside[middle, middle] = False
        self.tails = [free_tails(outside, near) for near in self.clearings]
        self.heads = length * _direction(seeds)
        self.backs = (length + gap) * _direction(_reverse(seeds))
        self.steps = (length + 2 * gap) * _direction(angles)
        turn = abs(angles[:, None] - angles[SEED_DIRECTIONS:])
        turn = setting.continuity * np.minimum(turn, 2 * np.pi - turn)
        self.weights = np.cos(np.minimum(turn, np.pi / 2)) ** 2


def free_tails(
    occupied: Bool[np.ndarray, "S S"], clearing: Int[np.ndarray, "n 2"]
) -> Int[np.ndarray, "m 2"]:
    """Returns all pixels with a free clearing, (m, 2); pixels outside the image count as free."""
    reach, size = abs(clearing).max(), len(occupied)
    padded = np.pad(occupied, reach)
    blocked = np.zeros((size, size), bool)
    for y, x in clearing + reach:
        blocked |= padded[y : y + size, x : x + size]
    return np.argwhere(~blocked)


def disc(radius: float) -> UInt8[np.ndarray, "K K"]:
    """Draws a filled circle around the middle pixel, with levels 0 to 255."""
    reach = int(np.ceil(radius)) + 2
    side = 2 * reach + 1
    y, x = np.indices((side * SCALE, side * SCALE)) - reach * SCALE
    return _resize(255 * (y**2 + x**2 <= (radius * SCALE) ** 2), (side, side))


def _direction(angles: np.ndarray | float) -> Float[np.ndarray, "*n 2"]:
    return np.stack([np.sin(angles), np.cos(angles)], -1)


def _reverse(angles: np.ndarray) -> np.ndarray:
    return np.where(angles < 0, angles + np.pi, angles - np.pi)


def _circle(radius: int) -> Int[np.ndarray, "E 2"]:
    """Returns the pixels of a circle, sampled in steps of one pixel."""
    exact = radius * _direction(np.arange(0, 2 * np.pi, 1 / radius))
    return np.unique(np.floor(exact).astype(int), axis=0)


def shifted(
    at: Int[np.ndarray, "*n 2"], exact: Float[np.ndarray, "*n 2"]
) -> Int[np.ndarray, "*n 2"]:
    """Moves pixels by exact offsets, and rounds up.

    Sums are rounded as in the published program: near the upper and left border, where floating
    point is finest, a cosine of 6e-17 moves a point by a pixel.  With exact sums, 10 % more of the
    hard pairs of 32 pixels would succeed.
    """
    return np.ceil(at + exact).astype(int)


def _draw(angle: float, setting: Setting, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws line and mask, (K, K) each, of a paddle from the middle at an angle."""
    reach = setting.length + int(np.ceil(setting.thickness)) + gap
    middle, side = reach * SCALE, 2 * reach * SCALE + 1
    large = Image.new("L", (side, side))
    y, x = shifted(np.full(2, middle), setting.length * SCALE * _direction(angle)).tolist()
    ImageDraw.Draw(large).line(
        [(middle, middle), (x, y)], fill=255, width=round(setting.thickness * SCALE)
    )
    line = np.asarray(large)
    shape = (2 * reach + 1, 2 * reach + 1)
    return _resize(line, shape), _resize(_thicken(line, gap * SCALE), shape)


def _resize(levels: np.ndarray, shape: tuple[int, int]) -> UInt8[np.ndarray, "Y X"]:
    image = Image.fromarray(levels.astype(np.uint8))
    return np.asarray(image.resize(shape, Image.Resampling.LANCZOS))


def _thicken(levels: np.ndarray, radius: int) -> np.ndarray:
    """Returns the largest level within a radius of each pixel; the outside has level 0."""
    padded = np.pad(levels, radius)
    offsets = np.argwhere(np.ones((2 * radius + 1, 2 * radius + 1)))
    near = offsets[((offsets - radius) ** 2).sum(1) <= radius**2]
    rows, columns = levels.shape
    return np.max([padded[y : y + rows, x : x + columns] for y, x in near], axis=0)
