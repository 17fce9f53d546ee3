"""ListOps: nested lists of digits with operators; the class is the value of a list, a digit.

    python -m linear_transformer.data.listops --out=DIR

makes the data, in the layout of Long Range Arena: DIR/listops-1000/basic_{train,val,test}.tsv with
the columns Source and Target.  Tree i is a function of (--seed, i), all trees are different, and
the files are the same for any number of --processes.  The published files were made without a
seed, so results on generated files are for other trees of the same distribution.

The tokens are digits, operators and the closing bracket.  Parentheses are left out, because they
only write a list as a binary tree.  A tokenizer that splits at everything but letters and digits
loses the brackets, and the value of a list without brackets is undefined.  This error affected the
published results of Long Range Arena's first version.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from linear_transformer.data.errors import DataError, split_of
from linear_transformer.data.io.reading import existing_path, require_distinct
from linear_transformer.data.listops.trees import OPERATORS

NAME = "listops"
FOLDER = "listops-1000"
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
HEADER = "Source\tTarget"
TOKENS = (*map(str, range(10)), *OPERATORS, "]")  # token n has id n + 1; 0 is padding

_IDS = {token.encode(): number for number, token in enumerate(TOKENS, 1)}
_OPENING = [_IDS[operator.encode()] for operator in OPERATORS]
_FOLDERS = (".", FOLDER, f"lra_release/{FOLDER}", f"lra_release/lra_release/{FOLDER}")
# A single byte replaces each operator, so that whole rows are translated at once.
_BYTES = {operator.encode(): bytes([number]) for number, operator in enumerate(OPERATORS, 1)}
_UNKNOWN = 255
_TABLE = bytearray([_UNKNOWN] * 256)
for _token, _id in _IDS.items():
    _TABLE[_BYTES.get(_token, _token)[0]] = _id


@dataclasses.dataclass(frozen=True)
class Sequences(Sequence):
    """Sequences of ids, concatenated in memory.

    Attributes:
      ids: (M,), ids of all sequences.
      ends: (N,), index after the last token of each sequence.
    """

    ids: UInt8[np.ndarray, " M"]
    ends: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: SupportsIndex) -> UInt8[np.ndarray, " T"]:
        index = range(len(self))[index]
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]


@dataclasses.dataclass(frozen=True)
class ListOps:
    """Rows by split: "train", "validation" and "test"."""

    sequences: Mapping[str, Sequences]
    labels: Mapping[str, Int[np.ndarray, " N"]]
    name = NAME
    licence = "Apache-2.0"
    vocab_size = 1 + len(TOKENS)
    num_classes = 10
    sequences_per_example = 1
    num_threads = 0  # the rows are in memory

    def split(self, name: str) -> tuple[Sequences, Int[np.ndarray, " N"]]:
        """Returns rows and labels of a split; raises a DataError for an unknown name."""
        return split_of(self.sequences, name, NAME), self.labels[name]

    def read(self, item: UInt8[np.ndarray, " T"]) -> tuple[UInt8[np.ndarray, " T"]]:
        return (item,)


def load(config: Any) -> ListOps:
    """Reads the three files in or below the folder `config.path`.

    Raises:
      DataError: the path is empty, or a file is missing or broken; the message names file and row.
    """
    folder = existing_path(
        config.path,
        NAME,
        f"the folder that `python -m linear_transformer.data.listops --out=DIR` wrote, or one with "
        f"{FILES['train']} in it",
    )
    found = next((f for f in _FOLDERS if (folder / f / FILES["train"]).exists()), None)
    if found is None:
        raise DataError(f"config.data.path = {config.path}: no {FOLDER}/{FILES['train']} in it")
    require_distinct({split: [folder / found / file] for split, file in FILES.items()})
    read = {split: _read_rows(folder / found / file) for split, file in FILES.items()}
    return ListOps(
        {split: sequences for split, (sequences, _) in read.items()},
        {split: labels for split, (_, labels) in read.items()},
    )


def tokenize(source: bytes) -> bytes:
    """Returns the ids of a list, given as text with blanks between tokens.

    Raises:
      DataError: a token is unknown, there are no tokens, or a list is not closed.
    """
    short = source
    for operator, byte in _BYTES.items():
        short = short.replace(operator, byte)
    # Fast path: one byte per token and one blank between tokens.
    ids = short[::2].translate(_TABLE, b"()")
    if short[1::2].strip(b" ") or len(short) % 2 == 0 or _UNKNOWN in ids:
        tokens = [token for token in source.split() if token not in (b"(", b")")]
        for token in tokens:
            if token not in _IDS:
                raise DataError(f"unknown token {token.decode(errors='replace')!r}")
        ids = bytes(_IDS[token] for token in tokens)
    if not ids:
        raise DataError("the source is empty")
    opened, closed = sum(map(ids.count, _OPENING)), ids.count(_IDS[b"]"])
    if opened != closed:
        raise DataError(f"{opened} operators and {closed} closing brackets")
    return ids


def _read_rows(path: epath.Path) -> tuple[Sequences, Int[np.ndarray, " N"]]:
    ids, ends, labels = bytearray(), [], []
    try:
        with path.open("rb") as file:
            if file.readline().rstrip(b"\r\n") != HEADER.encode():
                raise DataError(f"{path}: row 1 must be the header Source, tab, Target")
            for number, line in enumerate(file, 2):
                columns = line.rstrip(b"\r\n").split(b"\t")
                if len(columns) != 2:
                    raise DataError(f"{path}: row {number} has {len(columns)} columns; 2 expected")
                source, target = columns
                if len(target) != 1 or not target.isdigit():
                    label = target.decode(errors="replace")
                    raise DataError(
                        f"{path}: row {number} has the label {label!r}; 0 to 9 expected"
                    )
                try:
                    ids += tokenize(source)
                except DataError as error:
                    raise DataError(f"{path}: row {number}: {error}") from error
                ends.append(len(ids))
                labels.append(int(target))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not labels:
        raise DataError(f"{path}: no row behind the header")
    return Sequences(np.frombuffer(ids, np.uint8), np.array(ends)), np.array(labels, np.int32)


def write(out: epath.Path, counts: Mapping[str, int], trees: Iterator[tuple[str, int]]) -> None:
    """Writes the next `counts[split]` trees to the file of each split below `out`.

    Raises:
      DataError: the folder can't be written.
    """
    folder = out / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in counts.items():
            partial = folder / f"{FILES[split]}.part"
            with partial.open("w") as file:
                file.write(f"{HEADER}\n")
                for text, value in itertools.islice(trees, count):
                    file.write(f"{text}\t{value}\n")
            partial.replace(folder / FILES[split])
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
