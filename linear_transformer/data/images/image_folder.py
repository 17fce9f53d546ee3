"""Photographs, one folder per class: DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG (ImageNet).

A file that is reached by two links counts as one image.  If it is in both splits, it is used for
validation only.

The views are the usual ones for ResNets.  A training view is a random box with 8 % to 100 % of the
area and sides in the ratio 3/4 to 4/3, scaled to a square (Szegedy et al. 2015, arXiv:1409.4842,
section 6).  An evaluation view is the central square of the image, after the shorter side is
scaled to 256/224 of the square.
"""

import dataclasses
import io
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from linear_transformer.data.errors import DataError, split_of
from linear_transformer.data.io.reading import (
    distinct,
    entries,
    existing_path,
    read_file,
)

NAME = "image_folder"
FOLDERS = {"train": "train", "validation": "val"}
SUFFIXES = (".jpeg", ".jpg", ".png")

Box = tuple[float, float, float, float]  # left, upper, right and lower border, pixels

_AREA = (0.08, 1.0)
_LOG_RATIO = math.log(4 / 3)
_ATTEMPTS = 10
_MARGIN = 256 / 224
# Errors of Pillow for a file that is not an image or is damaged.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """Files and labels by split; `read` reads the file of an image.

    Attributes:
      classes: names of the folders; a label is an index of this tuple.
      size: side of the square images, in pixels.
      files: (N,) by "train" and "validation".
      labels: (N,), from 0, by split.
    """

    classes: tuple[str, ...]
    size: int
    files: Mapping[str, Sequence[epath.Path]]
    labels: Mapping[str, Int[np.ndarray, " N"]]
    name = NAME
    licence = "unknown"
    num_threads = 16  # Pillow releases the interpreter's lock to decode and scale

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (rows Y, columns X, channels C) of an image."""
        return (self.size, self.size, 3)

    def split(self, name: str) -> tuple[Sequence[epath.Path], Int[np.ndarray, " N"]]:
        """Returns files and labels of a split; raises a DataError for an unknown name."""
        return split_of(self.files, name, NAME), self.labels[name]

    def read(
        self, file: epath.Path, rng: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "Y X 3"]:
        """Reads the central square of a file's image, or with `rng` a random view for training.

        Raises:
          DataError: the file can't be read, is not an image, or is damaged.
        """
        try:
            with Image.open(io.BytesIO(read_file(file))) as opened:
                image = opened.convert("RGB")
        except DataError:
            raise
        except _DAMAGED as error:
            reason = " ".join(str(error).split()).partition(" <_io")[0]
            raise DataError(f"{file}: not an image, or damaged ({reason})") from error
        box = central_box(*image.size) if rng is None else random_box(*image.size, rng)
        square = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        return np.asarray(square)


def load(config: Any) -> ImageFolder:
    """Lists the files below `config.path`, for square images with side `config.image_size`.

    Raises:
      DataError: a folder is missing or empty, or the splits have different classes.
    """
    size = config.image_size
    if size < 1:
        raise DataError(f"config.data.image_size = {size}: must be at least 1")
    folder = existing_path(config.path, NAME, "a folder of train/CLASS/*.JPEG and val/CLASS/*.JPEG")
    seen: set[Hashable] = set()
    listed = {split: _list(folder / FOLDERS[split], seen) for split in ("validation", "train")}
    classes = tuple(listed["train"])
    if other := set(classes) ^ set(listed["validation"]):
        raise DataError(f"{folder}: class {min(other)} is in only one of train and val")
    files = {split: [*itertools.chain(*listed[split].values())] for split in FOLDERS}
    labels = {
        split: np.repeat(
            np.arange(len(classes), dtype=np.int32), [*map(len, listed[split].values())]
        )
        for split in FOLDERS
    }
    return ImageFolder(classes, size, files, labels)


def _list(folder: epath.Path, seen: set[Hashable]) -> dict[str, list[epath.Path]]:
    """Returns the images of each class that are not in `seen`, sorted by name."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {NAME} has one folder a class in it")
    by_class = {}
    for parent in distinct(path for path in entries(folder) if path.is_dir()):
        images = [path for path in entries(parent) if path.suffix.lower() in SUFFIXES]
        by_class[parent.name] = distinct(images, seen)
        if not by_class[parent.name]:
            known = "that is not in another class or split" if images else "in it"
            raise DataError(f"{parent}: no {', '.join(SUFFIXES)} file {known}")
    if not by_class:
        raise DataError(f"{folder}: no folder of a class in it")
    return by_class


def central_box(width: int, height: int) -> Box:
    """Returns the central square."""
    side = min(width, height) / _MARGIN
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draws a box of random area, ratio and position; the central square if ten draws fail."""
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(-_LOG_RATIO, _LOG_RATIO))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            left = float(rng.integers(width - columns, endpoint=True))
            upper = float(rng.integers(height - rows, endpoint=True))
            return left, upper, left + columns, upper + rows
    return central_box(width, height)
