"""Growth of the contours of Pathfinder images, in parallel: one image in each lane.

Only one of hundreds or thousands of pairs of contours can be completed, so many attempts are made
in parallel.  Each attempt follows the published program (Linsley et al. 2018, arXiv:1805.08315): an
attempt that gets stuck is discarded as a whole, and the next one starts from the beginning.
"""

import numpy as np
from jaxtyping import Int

from linear_transformer.data.pathfinder.paddles import (
    SEED_DIRECTIONS,
    Paddles,
    Setting,
    free_tails,
    shifted,
)

Contours = Int[np.ndarray, "n c p 3"]  # direction, row and column of p paddles of c contours

_TRIES = 3  # attempts to place a paddle
_DISTRACTOR_TRIES = 5
_OCCUPIED = 76  # 0.3 times 255: masks up to this level leave room for a first paddle
_LEAST_FREE = 0.01  # share of free pixels that another distractor needs
_LEAST_WEIGHT = 1e-4 * 255
_BYTES = 2**25  # memory of all lanes that are tried in parallel


class Field:
    """Levels (n, S + 2 * pad, S + 2 * pad) of n square images, each with a border."""

    def __init__(self, values: np.ndarray, pad: int):
        self.values, self.pad = values, pad

    def around(self, lanes: np.ndarray, at: Int[np.ndarray, "n 2"], side: int) -> np.ndarray:
        """Copies windows (n, side, side) around points."""
        windows, index = self._windows(lanes, at, side)
        return windows[index]

    def merge(self, lanes: np.ndarray, at: Int[np.ndarray, "n 2"], patches: np.ndarray) -> None:
        """Merges patches (n, K, K) around points by the maximum; the lanes must be distinct."""
        windows, index = self._windows(lanes, at, patches.shape[1])
        windows[index] = np.maximum(windows[index], patches)

    def inner(self) -> np.ndarray:
        """Returns a view of the images (n, S, S) without their borders."""
        return self.values[:, self.pad : -self.pad, self.pad : -self.pad]

    def _windows(self, lanes: np.ndarray, at: np.ndarray, side: int):
        first = at + self.pad - side // 2
        windows = np.lib.stride_tricks.sliding_window_view(
            self.values, (side, side), axis=(1, 2), writeable=True
        )
        return windows, (lanes, first[:, 0], first[:, 1])


class Lanes:
    """Lanes: n images in which contours grow.

    Attributes:
      masks: space around paddles that must stay free, 255 in and beyond the margin.
      halos: wider space around paddles in which no other paddle may end.
    """

    def __init__(self, setting: Setting, paddles: Paddles, masks: np.ndarray, halos: np.ndarray):
        self.setting, self.paddles = setting, paddles
        self.masks, self.halos = Field(masks, paddles.pad), Field(halos, paddles.pad)

    @classmethod
    def empty(cls, setting: Setting, paddles: Paddles) -> "Lanes":
        """Makes empty lanes, as many as `_BYTES` of memory allow."""
        side = setting.size + 2 * paddles.pad
        count = _BYTES // (2 * side**2)
        fields = np.full((2, count, side, side), 255, np.uint8)
        for field, margin in zip(fields, (0, paddles.gap), strict=True):
            first = paddles.pad + setting.border + margin
            field[:, first : side - first, first : side - first] = 0
        return cls(setting, paddles, *fields)

    def grow_pairs(self, length: int, rng: np.random.Generator) -> tuple["Lanes", Contours]:
        """Tries to grow two contours of `length` paddles per lane; returns lanes that succeed."""
        count = len(self.masks.values)
        contours = np.zeros((count, 2, length, 3), int)
        alive = np.arange(count)
        for contour, propose in enumerate((self._begin_first, self._begin_second)):
            seeded, pending = [], alive
            for _ in range(_TRIES):
                pending, seeds = propose(pending, contours, rng)
                ok = self._inside(seeds)
                contours[pending[ok], contour, 0] = seeds[ok]
                seeded.append(pending[ok])
                pending = pending[~ok]
            alive = np.concatenate(seeded)
        alive = self._grow(np.sort(alive), contours, rng)
        grown = self.masks.values[alive], self.halos.values[alive]
        return Lanes(self.setting, self.paddles, *grown), contours[alive]

    def _begin_first(self, lanes, contours, rng):
        """Returns lanes with room, and the first paddles (n, 3) of their first contours."""
        counts = np.array([len(tails) for tails in self.paddles.tails])
        direction = rng.integers(SEED_DIRECTIONS, size=len(lanes))
        room = counts[direction] > 0
        lanes, direction = lanes[room], direction[room]
        number = np.floor(rng.random(len(lanes)) * counts[direction]).astype(int)
        number += (np.cumsum(counts) - counts)[direction]
        tails = np.concatenate(self.paddles.tails)[number]
        return lanes, np.concatenate([direction[:, None], tails], 1)

    def _begin_second(self, lanes, contours, rng):
        """Returns lanes, and first paddles (n, 3) of second contours, away from the first ones."""
        direction = rng.integers(SEED_DIRECTIONS, size=(len(lanes), 1))
        angle = rng.integers(SEED_DIRECTIONS, size=len(lanes)) * np.pi / 180
        away = self.setting.seed_distance * np.stack([np.sin(angle), np.cos(angle)], -1)
        tails = np.rint(contours[lanes, 0, 0, 1:] + away).astype(int)
        return lanes, np.concatenate([direction, tails], 1)

    def _inside(self, seeds: Int[np.ndarray, "n 3"]) -> np.ndarray:
        """Returns whether head and pivot of each first paddle are in the image, (n,)."""
        corners = np.concatenate(self._heads_and_pivots(seeds), axis=1)
        return np.all((corners >= 0) & (corners < self.setting.size), axis=1)

    def add_distractor(self, length: int, rng: np.random.Generator):
        """Adds a contour of `length` paddles to each lane that has room.

        Returns:
          The indices of these lanes (n,), and the contours (n, 1, length, 3).
        """
        contours = np.zeros((len(self.masks.values), 1, length, 3), int)
        missing = np.arange(len(contours))
        for _ in range(_DISTRACTOR_TRIES):
            before = self.masks.values[missing], self.halos.values[missing]
            seeds = {lane: self._seed(lane, rng) for lane in missing.tolist()}
            alive = np.array([lane for lane in seeds if seeds[lane] is not None], int)
            for lane in alive:
                contours[lane, 0, 0] = seeds[lane]
            alive = self._grow(alive, contours, rng)
            lost = ~np.isin(missing, alive)
            missing = missing[lost]
            for field, values in zip((self.masks, self.halos), before, strict=True):
                field.values[missing] = values[lost]
        found = np.setdiff1d(np.arange(len(contours)), missing)
        return found, contours[found]

    def _seed(self, lane: int, rng: np.random.Generator) -> tuple[int, int, int] | None:
        """Draws direction, row and column of a first paddle; returns None if there is no room."""
        occupied = self.masks.inner()[lane] > _OCCUPIED
        if 1 - occupied.mean() < _LEAST_FREE:
            return None
        for _ in range(_TRIES):
            direction = int(rng.integers(SEED_DIRECTIONS))
            tails = free_tails(occupied, self.paddles.clearings[direction])
            if not len(tails):
                return None
            seed = (direction, *tails[rng.integers(len(tails))].tolist())
            if self._inside(np.array([seed]))[0]:
                return seed
        return None

    def _heads_and_pivots(self, seeds: Int[np.ndarray, "*n 3"]) -> tuple[np.ndarray, np.ndarray]:
        direction, tails = seeds[..., 0], seeds[..., 1:]
        heads = shifted(tails, self.paddles.heads[direction])
        return heads, shifted(heads, self.paddles.backs[direction])

    def _grow(self, alive: np.ndarray, contours: Contours, rng: np.random.Generator) -> np.ndarray:
        """Extends contours in turn from their first paddles; returns lanes that did not get stuck.

        The space around a paddle is occupied only after the next paddle, which it would block.  The
        last paddle of the first of two contours never occupies space, as in the published program.
        """
        _, pivots = self._heads_and_pivots(contours[:, :, 0])
        for paddle in range(1, contours.shape[2]):
            for contour in range(contours.shape[1]):
                last = contours[alive, contour, paddle - 1]
                pivot = shifted(pivots[alive, contour], self.paddles.steps[last[:, 0]])
                ok, placed = self._extend(alive, pivot, last[:, 0], rng)
                alive = alive[ok]
                contours[alive, contour, paddle] = placed[ok]
                pivots[alive, contour] = pivot[ok]
                self._occupy(alive, last[ok])
        self._occupy(alive, contours[alive, -1, -1])
        return alive

    def _extend(self, lanes, pivots, directions, rng) -> tuple[np.ndarray, np.ndarray]:
        """Draws the next paddles (n, 3); also returns whether each of them has room, (n,)."""
        paddles = self.paddles
        ends = pivots[:, None] + paddles.ends
        y, x = np.moveaxis(ends + self.halos.pad, -1, 0).clip(0, self.halos.values.shape[1] - 1)
        free = 255 - self.halos.values[lanes[:, None], y, x]
        cumulative = np.cumsum(paddles.weights[directions] * free, axis=1)
        ok = np.zeros(len(lanes), bool)
        placed = np.zeros((len(lanes), 3), int)
        open_ = np.flatnonzero(cumulative[:, -1] >= _LEAST_WEIGHT)
        for _ in range(_TRIES):
            drawn = rng.random((len(open_), 1)) * cumulative[open_, -1:]
            end = (cumulative[open_] > drawn).argmax(1)
            at, direction = ends[open_, end], SEED_DIRECTIONS + end
            under = self.masks.around(lanes[open_], at, paddles.masks.shape[1])
            clear = ~(under > paddles.limits[direction]).any((1, 2))
            ok[open_[clear]] = True
            placed[open_, 0], placed[open_, 1:] = direction, at
            open_ = open_[~clear]
        return ok, placed

    def _occupy(self, lanes: np.ndarray, placed: Int[np.ndarray, "n 3"]) -> None:
        direction, at = placed[:, 0], placed[:, 1:]
        self.masks.merge(lanes, at, self.paddles.masks[direction])
        self.halos.merge(lanes, at, self.paddles.halos[direction])


def grow(
    setting: Setting, paddles: Paddles, length: int, count: int, rng: np.random.Generator
) -> tuple[Lanes, Contours]:
    """Tries pairs of contours until `count` are complete; returns the first `count`."""
    grown, contours = [], []
    while sum(map(len, contours)) < count:
        lanes, pairs = Lanes.empty(setting, paddles).grow_pairs(length, rng)
        grown.append(lanes)
        contours.append(pairs)
    fields = (
        np.concatenate([getattr(lanes, name).values for lanes in grown])[:count]
        for name in ("masks", "halos")
    )
    return Lanes(setting, paddles, *fields), np.concatenate(contours)[:count]
