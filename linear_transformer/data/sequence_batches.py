"""Batches of labelled sequences, single or in pairs, cut and padded to one length."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, Integer

from linear_transformer.data.errors import DataError
from linear_transformer.data.images import datasets as images, image_tokens
from linear_transformer.data.labelled import labelled_text
from linear_transformer.data.labelled.labelled_batches import evaluation_batches, training_batches
from linear_transformer.data.listops import dataset as listops
from linear_transformer.data.pathfinder import dataset as pathfinder
from linear_transformer.data.retrieval import dataset as retrieval
from linear_transformer.data.stream import Batch, check_shape


@runtime_checkable
class SequenceSource(Protocol):
    """Labelled sequences by split: "train", "validation" and "test".

    Attributes:
      name, licence: name and licence of the data set.
      vocab_size: number of ids, from 0.  In text, 0 is padding and byte b has id b + 1; pixels have
        256 grey levels and no padding.
      num_classes: number of labels, from 0.
      towers: number of sequences of an example: 1, or 2 that are compared.
      num_threads: threads for reading; 0 reads in the calling thread.
    """

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def towers(self) -> int: ...

    @property
    def num_threads(self) -> int: ...

    def split(self, name: str) -> tuple[Sequence[Any] | np.ndarray, Int[np.ndarray, " N"]]:
        """Returns the items that `read` takes, and labels; raises DataError for other names."""
        ...

    def read(self, item: Any, /) -> tuple[Integer[np.ndarray, " T"], ...]:
        """Returns the ids of each tower, at full length."""
        ...


DATASETS: dict[str, Callable[[Any], SequenceSource]] = {
    "listops": listops.load,
    "pathfinder": pathfinder.load,
    "imdb": labelled_text.load_imdb,
    "newsgroups": labelled_text.load_newsgroups,
    "spam": labelled_text.load_spam,
    "aan": retrieval.load_aan,
    "passages": retrieval.load_passages,
    **dict.fromkeys(images.DATASETS, image_tokens.load),
}


def load_source(config: Any) -> SequenceSource:
    """Loads the data set that `config.dataset` names.

    Raises:
      DataError: the name is unknown, files are missing or broken, or images are shorter than a
        row.
    """
    if config.dataset not in DATASETS:
        raise DataError(
            f'config.data.dataset = "{config.dataset}": unknown; use one of {", ".join(DATASETS)}'
        )
    check_shape(config.batch_size, config.sequence_length)
    source = DATASETS[config.dataset](config)
    if not has_padding(source):
        items, _ = source.split("train")
        pixels = source.read(items[0])[0].size
        if config.sequence_length > pixels:
            raise DataError(
                f"config.data.sequence_length = {config.sequence_length}: an image of "
                f"{source.name} has {pixels} pixels, and there is no padding"
            )
    return source


def has_padding(source: SequenceSource) -> bool:
    """Returns whether rows can have padding; False for pixels, which fill every row."""
    return source.vocab_size != image_tokens.GREY_LEVELS


def training_sequences(
    source: SequenceSource,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Makes the endless dataset of training sequences, shuffled anew every epoch.

    For any number of processes, the processes together see the same examples.

    Args:
      source: source of the examples; its train split is read.
      batch_size: examples B of a batch of this process.
      sequence_length: tokens T of a row; longer sequences are truncated.
      seed: seed of the order, 0 to 2^32 - 1.
      process_index: index of this process.
      process_count: number of processes that share the data.

    Returns:
      A dataset whose iterator has `get_state` and `set_state` and yields `inputs` (B, T) int32,
      0 after each sequence, `lengths` (B,) int32, `labels` (B,) int32, and `weights` (B,)
      float32, all 1.  With two towers inputs are (B, 2, T) and lengths (B, 2).

    Raises:
      DataError: a value is out of range; on reading, a file is broken.
    """
    check_shape(batch_size, sequence_length)

    def read(item: Any, rng: np.random.Generator) -> Batch:
        del rng  # sequences have no random augmentation
        return _example(source.read(item), sequence_length)

    return training_batches(
        source,
        read,
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )


def evaluation_sequences(
    source: SequenceSource,
    split: str,
    *,
    batch_size: int,
    sequence_length: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields every example of a split once; rows of weight 0 fill up the last batch.

    Args:
      source: source of the examples.
      split: "train", "validation" or "test".
      batch_size: rows B of a batch of this process.
      sequence_length: tokens T of a row; longer sequences are truncated.
      process_index: index of this process.
      process_count: number of processes that share the rows of each batch.

    Raises:
      DataError: the split is unknown, a value is out of range, or a file is broken.
    """
    check_shape(batch_size, sequence_length)

    def read(item: Any) -> Batch:
        return _example(source.read(item), sequence_length)

    return evaluation_batches(
        source,
        split,
        read,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )


def _example(sequences: tuple[Integer[np.ndarray, " _"], ...], sequence_length: int) -> Batch:
    inputs = np.zeros((len(sequences), sequence_length), np.int32)
    lengths = np.array([min(ids.size, sequence_length) for ids in sequences], np.int32)
    for row, ids, length in zip(inputs, sequences, lengths, strict=True):
        row[:length] = ids[:length]
    if len(sequences) == 1:
        inputs, lengths = inputs[0], lengths[0]
    return {"inputs": inputs, "lengths": lengths}
