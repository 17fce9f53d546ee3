"""Pathfinder: images of dashed contours; the class is 1 if two discs are on the same contour.

    python -m linear_transformer.data.pathfinder --out=DIR --size=32 --difficulty=hard

makes images in the layout of Long Range Arena: DIR/pathfinder32/curv_contour_length_14/ with
imgs/BATCH/sample_N.png and metadata/BATCH.npy, which is text.  Batch n is a function of
(--seed, n) for any number of --processes.  Long Range Arena's Pathfinder has size 32, its Path-X
has size 128; both are "hard" and have 200,000 images.
"""

import collections
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from linear_transformer.data.errors import DataError, lookup, split_of
from linear_transformer.data.io.processes import ordered_map
from linear_transformer.data.io.reading import (
    decode_utf8,
    distinct,
    entries,
    existing_path,
    parse_npy,
    read_file,
)
from linear_transformer.data.pathfinder.images import draw
from linear_transformer.data.pathfinder.paddles import SETTINGS

NAME = "pathfinder"
FOLDERS = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
CONTOUR_LENGTHS = {"easy": 6, "intermediate": 9, "hard": 14}  # paddles
SPLITS = ("train", "validation", "test")

# Columns of metadata: folder, file, number, label, continuity, paddles of a contour, paddles of a
# distractor, length, thickness and gap of paddles, number of their contrasts.
_COLUMNS = 11
_BATCH = 1000  # images
# In the published easy images of 32 pixels this file is empty.
_EMPTY = "imgs/0/sample_172.png"
# Errors of Pillow for a file that is not an image or is damaged.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class Pathfinder:
    """Files and labels by split; `read` reads the file of an image.

    Attributes:
      folder: parent folder; the names of the files are relative to this folder.
      size: side of the square images, in pixels.
      files: (N,) by "train", "validation" and "test".
      labels: (N,) by split.
    """

    folder: epath.Path
    size: int
    files: Mapping[str, Sequence[str]]
    labels: Mapping[str, Int[np.ndarray, " N"]]
    name = NAME
    licence = "Apache-2.0"
    vocab_size = 256
    num_classes = 2
    sequences_per_example = 1
    num_threads = 16

    def split(self, name: str) -> tuple[Sequence[str], Int[np.ndarray, " N"]]:
        """Returns files and labels of a split; raises a DataError for an unknown name."""
        return split_of(self.files, name, NAME), self.labels[name]

    def read(self, file: str) -> tuple[UInt8[np.ndarray, " T"]]:
        """Reads the grey levels of an image, row by row, T = size^2.

        Raises:
          DataError: the file is missing or damaged, or the image has another size.
        """
        image = _read_image(self.folder / file)
        if image.shape != (self.size, self.size):
            rows, columns = image.shape
            raise DataError(
                f"{self.folder / file}: {columns} x {rows} pixels, and other images have "
                f"{self.size} x {self.size}"
            )
        return (image.reshape(-1),)


def load(config: Any) -> Pathfinder:
    """Lists the images of `config.difficulty` below `config.path`, split 80 / 10 / 10 %.

    Raises:
      DataError: the path or difficulty does not exist, or metadata are missing or broken.
    """
    difficulty = config.difficulty
    usual = lookup(FOLDERS, difficulty, "config.data.difficulty")
    folder = existing_path(
        config.path,
        NAME,
        "a folder that `python -m linear_transformer.data.pathfinder --out=DIR` wrote, as "
        "DIR/pathfinder32",
    )
    if folder.name in FOLDERS.values() and folder.name != usual:
        raise DataError(
            f"config.data.path = {config.path}: not {difficulty}, which is {usual}; "
            "change the path or config.data.difficulty"
        )
    if not (folder / "metadata").is_dir():
        folder = folder / usual
    if not (folder / "metadata").is_dir():
        raise DataError(f"config.data.path = {config.path}: no folder {folder}/metadata")

    rows = []
    tables = [path for path in entries(folder / "metadata") if path.suffix == ".npy"]
    for path in distinct(sorted(tables, key=_batch_number)):
        rows += _read_metadata(path)
    rows = list(dict.fromkeys(rows))  # two tables may have the same rows
    labels_of = dict(rows)
    for file, label in rows:
        if label != labels_of[file]:
            raise DataError(f"{folder}/metadata: {file} has the label 0 and the label 1")
    if (_EMPTY, 1) in rows or (_EMPTY, 0) in rows:
        rows = _without_empty(folder, rows)
    if len(rows) < 10:
        raise DataError(f"{folder}/metadata: {len(rows)} images; at least 10 are needed")
    files, labels = zip(*rows, strict=True)
    labels = np.array(labels, np.int32)
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    cuts = dict(zip(SPLITS, (slice(first), slice(first, second), slice(second, None)), strict=True))
    return Pathfinder(
        folder,
        len(_read_image(folder / files[0])),
        {split: files[cut] for split, cut in cuts.items()},
        {split: labels[cut] for split, cut in cuts.items()},
    )


def _batch_number(path: epath.Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else -1, path.stem)


def _read_metadata(path: epath.Path) -> list[tuple[str, int]]:
    """Reads file and label of each image of a batch, from text or from an array of strings."""
    data = read_file(path)
    if data.startswith(b"\x93NUMPY"):
        table = parse_npy(data, str(path))
        if table.ndim != 2 or table.dtype.kind != "U":
            raise DataError(
                f"{path}: {table.dtype} of shape {table.shape}; a table of strings needed"
            )
        rows = table.tolist()
    else:
        rows = [line.split() for line in decode_utf8(data, str(path)).splitlines()]
    found = []
    for number, row in enumerate(rows, 1):
        if len(row) != _COLUMNS:
            raise DataError(f"{path}: row {number} has {len(row)} columns; {_COLUMNS} expected")
        if row[3] not in ("0", "1"):
            raise DataError(f"{path}: row {number} has the label {row[3]!r}; 0 or 1 expected")
        found.append((f"{row[0]}/{row[1]}", int(row[3])))
    return found


def _without_empty(folder: epath.Path, rows: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Removes the published file that is empty; a generated image of the same name stays."""
    if (folder / _EMPTY).exists() and not (folder / _EMPTY).stat().length:
        logging.info("%s is skipped: it was published without content", folder / _EMPTY)
        return [row for row in rows if row[0] != _EMPTY]
    return rows


def _read_image(path: epath.Path) -> UInt8[np.ndarray, "Y X"]:
    try:
        with Image.open(io.BytesIO(read_file(path))) as opened:
            return np.asarray(opened.convert("L"))
    except DataError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split()).partition(" <_io")[0]
        raise DataError(f"{path}: not an image, or damaged ({reason})") from error


def write(
    out: epath.Path, *, size: int, difficulty: str, images: int, seed: int, processes: int
) -> epath.Path:
    """Draws images and writes them to a new folder below `out`; returns the folder.

    Raises:
      DataError: a value is out of range, or the folder exists or can't be written.
    """
    if size not in SETTINGS:
        raise DataError(f"--size={size}: use one of {', '.join(map(str, SETTINGS))}")
    if difficulty not in FOLDERS:
        raise DataError(f"--difficulty={difficulty}: use one of {', '.join(FOLDERS)}")
    if images < 1:
        raise DataError(f"--images={images}: must be at least 1")
    if seed < 0:
        raise DataError(f"--seed={seed}: must be 0 or more")
    folder = out / f"pathfinder{size}" / FOLDERS[difficulty]
    if (folder / "metadata").exists():
        raise DataError(f"--out={out}: {folder} has images already; choose another folder")
    work = functools.partial(_write_batch, folder, size, CONTOUR_LENGTHS[difficulty], seed)
    batches = [(n, min(_BATCH, images - n * _BATCH)) for n in range(-(-images // _BATCH))]
    collections.deque(ordered_map(work, batches, processes), maxlen=0)
    return folder


def _write_batch(
    folder: epath.Path, size: int, contour_length: int, seed: int, batch: tuple[int, int]
) -> None:
    """Draws one batch; its metadata are written last, so that they exist for whole batches only."""
    number, count = batch
    setting = SETTINGS[size]
    drawn = draw(setting, contour_length, count, np.random.default_rng((seed, number)))
    lines = []
    try:
        images = folder / "imgs" / str(number)
        images.mkdir(parents=True, exist_ok=True)
        for n, (image, label, gap) in enumerate(
            zip(drawn.images, drawn.labels, drawn.gaps, strict=True)
        ):
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, "PNG")
            (images / f"sample_{n}.png").write_bytes(encoded.getvalue())
            lines.append(
                f"imgs/{number} sample_{n}.png {n} {label} {setting.continuity} {contour_length} "
                f"{contour_length // 3} {setting.length} {setting.thickness} {gap} 1\n"
            )
        (folder / "metadata").mkdir(exist_ok=True)
        (folder / "metadata" / f"{number}.npy").write_text("".join(lines))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
