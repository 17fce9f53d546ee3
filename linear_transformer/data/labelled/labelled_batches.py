"""Batches of labelled examples of any kind, for training (with Grain) and evaluation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Unpack, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from linear_transformer.data.share import Share, check_seed, check_shape, own_examples, row_numbers
from linear_transformer.data.stream import Batch


@runtime_checkable
class LabelledSource(Protocol):
    """Common interface of sources of images, sequences and utterances.

    Attributes:
      num_threads: threads for reading; 0 reads in the calling thread.
    """

    @property
    def num_threads(self) -> int: ...

    def split(self, name: str) -> tuple[Sequence[Any] | np.ndarray, Int[np.ndarray, " N"]]:
        """Returns the items to read, and their labels; raises a DataError for an unknown name."""
        ...


def training_batches(
    source: LabelledSource,
    read: Callable[[Any, np.random.Generator], Batch],
    *,
    seed: int,
    **share: Unpack[Share],
) -> grain.IterDataset:
    """Makes the endless dataset of the train split, shuffled anew every epoch.

    For any number of processes, the processes together see the same examples.

    Args:
      source: source of the examples; its train split is read.
      read: function from an item and a random generator to the arrays of an example.
      seed: seed of order and augmentation, 0 to 2^32 - 1.
      **share: examples of this process, see `data.share.Share`.

    Returns:
      A dataset whose iterator has `get_state` and `set_state` and yields the arrays of `read` with
      a leading axis B, `labels` (B,) int32, and `weights` (B,) float32, all 1.

    Raises:
      DataError: a value is out of range; on reading, a file is broken.
    """
    batch_size = share["batch_size"]
    check_shape(batch_size, 1)
    check_seed(seed)
    items, labels = source.split("train")

    def example(number: int, rng: np.random.Generator) -> Batch:
        return _with_label(read(items[number], rng), labels[number])

    numbers = grain.MapDataset.range(len(items)).seed(seed).shuffle().repeat()
    examples = numbers.random_map(example)[own_examples(share)]
    return examples.to_iter_dataset(_read_options(source, batch_size)).batch(batch_size)


def evaluation_batches(
    source: LabelledSource,
    split: str,
    read: Callable[[Any], Batch],
    **share: Unpack[Share],
) -> Iterator[Batch]:
    """Yields every example of a split once; zeros of weight 0 fill up the last batch.

    Args:
      source: source of the examples.
      split: "train", "validation" or "test".
      read: function from an item to the arrays of an example.
      **share: rows of this process, see `data.share.Share`.

    Raises:
      DataError: the split is unknown, a value is out of range, or a file is broken.
    """
    batch_size = share["batch_size"]
    check_shape(batch_size, 1)
    items, labels = source.split(split)

    rows = row_numbers(len(items), **share)
    numbers = np.concatenate([np.zeros(0, np.int64), *rows])

    def example(row: int) -> Batch:
        number = numbers[row] if numbers[row] < len(items) else 0
        arrays = _with_label(read(items[number]), labels[number])
        if number == numbers[row]:
            return arrays
        return {name: np.zeros_like(array) for name, array in arrays.items()}

    examples = grain.MapDataset.range(len(numbers)).map(example)
    yield from examples.to_iter_dataset(_read_options(source, batch_size)).batch(batch_size)


def _with_label(arrays: Batch, label: np.integer) -> Batch:
    return arrays | {"labels": np.int32(label), "weights": np.float32(1)}


def _read_options(source: LabelledSource, batch_size: int) -> grain.ReadOptions:
    """Returns options of Grain that read two batches ahead if there are reader threads."""
    threads = source.num_threads
    ahead = max(2 * batch_size, threads) if threads else 0
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
