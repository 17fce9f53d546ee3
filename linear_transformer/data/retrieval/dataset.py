"""Pairs of texts, related (1) or not (0): citing articles (AAN), or passages of one work.

python -m linear_transformer.data.retrieval --out=DIR [--pairs=N]

writes pairs of passages in the format of AAN, which `config.data.dataset = "aan"` reads.
"""

import hashlib
import itertools
import os
import types
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int32, Int64, UInt8

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.array_cache import cached_arrays
from linear_transformer.data.io.reading import existing_path, require_distinct
from linear_transformer.data.text import shakespeare
from linear_transformer.data.text.byte_texts import ByteTexts
from linear_transformer.data.text.corpus import SPLITS
from linear_transformer.errors import ConfigError

PASSAGE_BYTES = 4_000
NUM_PAIRS = 20_000  # training pairs; validation and test have a tenth each

_FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
_FOLDERS = ("", "tsv_data", "lra_release/tsv_data", "lra_release/lra_release/tsv_data")
_COLUMNS = ("label", "id1", "id2", "text1", "text2")
_LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}

# Of every six works, the first is in the test split and the fourth in the validation split.
_ROLES = ("test", "train", "train", "validation", "train", "train")
# Passages of shorter works (three poems) would repeat the same lines too often.
_MIN_WORK_BYTES = 10 * PASSAGE_BYTES


def load_aan(config: Any) -> ByteTexts:
    """Loads pairs of articles of the ACL Anthology Network; label 1 if one cites the other, else 0.

    The task is Long Range Arena's Retrieval (Tay et al. 2020, arXiv:2011.04006), from the files of
    its release: 147,086 / 18,090 / 17,437 pairs.  The files have five columns and no header;
    quotes have no special meaning.  The 10 GB are read once to check the rows and to find the
    offsets of the texts, which are cached; later, texts are read at their first use.

    Args:
      config: `path` is the local folder of the release, or a folder with the three files.

    Raises:
      DataError: a file is missing or empty, or a row has another format.
    """
    folder = existing_path(config.path, "aan", "the folder of Long Range Arena's release")
    folders = [folder / name for name in _FOLDERS]
    found = next((f for f in folders if (f / _FILES["train"]).exists()), None)
    if found is None:
        raise DataError(
            f"config.data.path = {config.path}: no {_FILES['train']} in it, or in its tsv_data"
        )
    require_distinct({split: [found / name] for split, name in _FILES.items()})
    buffers, spans, labels = [], {}, {}
    for number, (split, name) in enumerate(_FILES.items()):
        buffer, bounds, labels[split] = _open(found / name)
        buffers.append(buffer)
        which = np.full((*bounds.shape[:2], 1), number, np.int64)
        spans[split] = np.concatenate([which, bounds], axis=-1)
    # Threads hide the latency of the disk.
    return ByteTexts("aan", "not stated", 2, tuple(buffers), spans, labels, num_threads=16)


def load_passages(config: Any) -> ByteTexts:
    """Makes pairs of 4,000-byte passages of Shakespeare: of one work (1) or of two works (0).

    The data set is a substitute for AAN that anyone can fetch; `config` is unused.  Names and
    topics distinguish the plays, and a model has to find them in both passages: on the test split,
    the best threshold on the cosine of tf-idf vectors gets 90 % of the pairs right with words, and
    61 % with bytes.  (For addresses to the Congress, by one president or by two, the result with
    words is 76 %: the answer is often not in the text.)

    No work is in two splits, so memorised names are of no use.  A single passage has no information
    on the label: works and positions have the same distribution for both labels, and each label has
    half of the pairs.  Passages of one work do not overlap.

    Raises:
      FetchError: the archive is not cached and cannot be downloaded.
      DataError: the archive has other contents.
    """
    del config
    return pair_passages(works(), NUM_PAIRS)


def pair_passages(works: Sequence[UInt8[np.ndarray, " _"]], num_pairs: int) -> ByteTexts:
    """Draws pairs of passages with a fixed seed.

    Args:
      works: bytes of each work; every split needs at least two long works.
      num_pairs: number of training pairs; the other splits have a tenth each, but at least two.
    """
    works = [work for work in works if work.size >= _MIN_WORK_BYTES]
    sizes = np.array([work.size for work in works])
    first_bytes = np.cumsum(sizes) - sizes
    roles = np.array([_ROLES[number % len(_ROLES)] for number in range(len(works))])
    spans, labels = {}, {}
    for seed, split in enumerate(SPLITS):
        numbers = np.flatnonzero(roles == split)
        count = num_pairs if split == "train" else max(num_pairs // 10, 2)
        labels[split] = (np.arange(count) % 2).astype(np.int32)
        rng = np.random.default_rng((0, seed))
        drawn, places = _draw(sizes[numbers], labels[split], rng)
        starts = first_bytes[numbers][drawn] + places
        parts = [np.zeros_like(starts), starts, starts + PASSAGE_BYTES]
        spans[split] = np.stack(parts, axis=-1)
    buffer = np.concatenate(works)
    return ByteTexts("passages", shakespeare.LICENCE, 2, (buffer,), spans, labels)


def write_tsv(texts: ByteTexts, folder: epath.Path) -> None:
    """Writes pairs to three files in the format of AAN; tabs and line ends become spaces.

    Raises:
      ConfigError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, name in _FILES.items():
            partial = folder / f"{name}.part"
            with partial.open("wb") as file:
                file.writelines(_lines(texts, split))
            partial.replace(folder / name)
    except OSError as error:
        raise ConfigError(f"--out={folder}: cannot be written ({error.strerror})") from error


def _lines(texts: ByteTexts, split: str) -> Iterator[bytes]:
    blank = bytes.maketrans(b"\t\r\n", b"   ")
    for item, label in zip(*texts.split(split), strict=True):
        pair = [(ids - 1).astype(np.uint8).tobytes().translate(blank) for ids in texts.read(item)]
        ids = [b"%d" % start for start in item[:, 1]]
        yield b"\t".join([b"%.1f" % label, *ids, *pair]) + b"\n"


def _draw(
    sizes: Int64[np.ndarray, " W"], labels: Int32[np.ndarray, " N"], rng: np.random.Generator
) -> tuple[Int64[np.ndarray, "N 2"], Int64[np.ndarray, "N 2"]]:
    """Draws works (N, 2), and positions (N, 2) of the passages in them.

    For both labels, two positions that do not overlap are drawn in a work.  If a work gives only
    one passage, its other position is unused.
    """
    count = labels.size
    first = rng.integers(sizes.size, size=count)
    other = (first + rng.integers(1, sizes.size, size=count)) % sizes.size
    works = np.stack([first, np.where(labels == 1, first, other)], axis=-1)
    ends = sizes[works] - 2 * PASSAGE_BYTES
    a, b = (rng.integers(0, ends, endpoint=True) for _ in range(2))
    early, late = np.minimum(a, b), np.maximum(a, b) + PASSAGE_BYTES
    partner = np.where(labels == 1, 0, 1)  # column of the positions of the second passage
    rows = np.arange(count)
    swapped = rng.integers(2, size=count) == 1
    left = np.where(swapped, late[:, 0], early[:, 0])
    right = np.where(swapped, early[rows, partner], late[rows, partner])
    return works, np.stack([left, right], axis=-1)


def works() -> list[UInt8[np.ndarray, " _"]]:
    corpus = shakespeare.load(types.SimpleNamespace(tokenizer="bytes"))
    return [*itertools.chain.from_iterable(corpus.splits.values())]


class _File:
    """Bytes of a file that is too large for memory, read by slices.

    The file is not memory-mapped: truncating a mapped file kills the process without a message.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, part: slice) -> UInt8[np.ndarray, " _"]:
        try:
            data = os.pread(self._file, part.stop - part.start, part.start)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read ({error.strerror})") from error
        if len(data) != part.stop - part.start:
            raise DataError(f"{self._path}: is shorter than it was when it was opened")
        return np.frombuffer(data, np.uint8)


def _open(
    path: epath.Path,
) -> tuple[_File, Int64[np.ndarray, "N 2 2"], Int32[np.ndarray, " N"]]:
    """Opens a file; returns it with the bounds (N, 2, 2) of both texts of a row, and labels."""
    try:
        status = os.stat(path)
        if not status.st_size:
            raise DataError(f"{path}: the file is empty")
        buffer = _File(path)
        version = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        digest = hashlib.sha256(version.encode()).hexdigest()[:16]
        bounds, labels = cached_arrays(f"aan-{digest}-1.npz", lambda: _index(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return buffer, bounds, labels


def _index(path: epath.Path) -> list[np.ndarray]:
    bounds, labels, offset = [], [], 0
    with open(path, "rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            columns = line.rstrip(b"\r\n").split(b"\t")
            _check_row(columns, f"{path}: row {number}")
            start1 = offset + sum(len(column) + 1 for column in columns[:3])
            start2 = start1 + len(columns[3]) + 1
            bounds.append((start1, start2 - 1, start2, start2 + len(columns[4])))
            labels.append(_LABELS[columns[0]])
            offset += len(line)
    return [np.array(bounds, np.int64).reshape(-1, 2, 2), np.array(labels, np.int32)]


def _check_row(columns: list[bytes], row: str) -> None:
    if len(columns) != len(_COLUMNS):
        raise DataError(f"{row}: {len(columns)} columns; expected {', '.join(_COLUMNS)}")
    if columns[0] not in _LABELS:
        shown = columns[0][:20].decode("ascii", "backslashreplace")
        raise DataError(f'{row}: label "{shown}"; must be 0.0 or 1.0')
    for name, column in zip(_COLUMNS[3:], columns[3:], strict=True):
        if not column:
            raise DataError(f"{row}: {name} is empty")
