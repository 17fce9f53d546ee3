"""Labelled texts as bytes, stored together in a few long arrays."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from linear_transformer.data.errors import DataError, split_of
from linear_transformer.data.text.corpus import SPLITS

Example = tuple[bytes, int]  # a text and its label


@dataclasses.dataclass(frozen=True)
class ByteTexts:
    """Labelled texts, or pairs of texts, by split; byte b has id b + 1, and 0 is padding.

    Attributes:
      name: name of the data set in `config.data.dataset`.
      licence: licence of the texts.
      num_classes: number of labels, from 0.
      buffers: arrays of bytes, or files read by slices, that contain the texts.
      spans: (N, sequences_per_example, 3) by "train", "validation" and "test": index of a text's
        buffer, index of the text's first byte in the buffer, and index after its last byte.
      labels: (N,) by split.
      num_threads: threads for reading; 0 reads in the calling thread.
    """

    name: str
    licence: str
    num_classes: int
    buffers: tuple[Any, ...]
    spans: Mapping[str, Int64[np.ndarray, "_ sequences 3"]]
    labels: Mapping[str, Int32[np.ndarray, " _"]]
    num_threads: int = 0
    vocab_size = 257

    @property
    def sequences_per_example(self) -> int:
        """Number of texts of an example."""
        return self.spans["train"].shape[1]

    def split(self, name: str) -> tuple[Int64[np.ndarray, "N sequences 3"], Int[np.ndarray, " N"]]:
        """Returns spans and labels of a split; raises a DataError for an unknown name."""
        return split_of(self.spans, name, self.name), self.labels[name]

    def read(self, item: Int64[np.ndarray, "sequences 3"]) -> tuple[Int32[np.ndarray, " _"], ...]:
        """Returns the ids of each text of a row of `spans`."""
        return tuple(
            np.add(self.buffers[buffer][start:stop], 1, dtype=np.int32)
            for buffer, start, stop in item
        )


def pack(
    name: str, licence: str, num_classes: int, examples: Mapping[str, Sequence[Example]]
) -> ByteTexts:
    """Joins single texts, given by split, in one buffer; see `ByteTexts` for other arguments.

    Each split is shuffled with a fixed seed, so that the start of a split has all classes.

    Raises:
      DataError: a split is empty.
    """
    spans, labels, start = {}, {}, 0
    for split in SPLITS:
        if not examples[split]:
            raise DataError(f"{name}: too few texts, the {split} split is empty")
        sizes = [len(text) for text, _ in examples[split]]
        borders = start + np.cumsum([0, *sizes])
        first, behind = borders[:-1], borders[1:]
        order = np.random.default_rng(0).permutation(first.size)
        spans[split] = np.stack([np.zeros_like(first), first, behind], axis=-1)[order, None]
        labels[split] = np.array([label for _, label in examples[split]], np.int32)[order]
        start = borders[-1]
    joined = b"".join(text for split in SPLITS for text, _ in examples[split])
    buffer = np.frombuffer(joined, np.uint8)
    return ByteTexts(name, licence, num_classes, (buffer,), spans, labels)


def cut(examples: Sequence[Example], percent: Mapping[str, int]) -> dict[str, list[Example]]:
    """Cuts examples into consecutive blocks of these shares; a rest below 100 % is unused."""
    borders = [0, *itertools.accumulate(percent.values())]
    ends = [len(examples) * border // 100 for border in borders]
    blocks = (list(examples[a:b]) for a, b in itertools.pairwise(ends))
    return dict(zip(percent, blocks, strict=True))


def drop_repeats(
    examples: Mapping[str, Iterable[Example]], keepers: Sequence[str]
) -> dict[str, list[Example]]:
    """Removes texts that are in several splits; the first such split in `keepers` keeps the text.

    Texts that differ only in white space count as equal.  Repeats within a split stay.
    """
    seen: set[bytes] = set()
    kept = {}
    for split in keepers:
        keyed = [(b" ".join(text.split()), (text, label)) for text, label in examples[split]]
        kept[split] = [example for key, example in keyed if key not in seen]
        seen.update(key for key, _ in keyed)
    return kept
