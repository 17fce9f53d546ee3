"""Batches of labelled sequences, single or in pairs, cut and padded to one length."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, Unpack, runtime_checkable

import grain
import numpy as np
from jaxtyping import Integer

from linear_transformer.data.errors import DataError, lookup, without_path
from linear_transformer.data.images import datasets as images, image_tokens
from linear_transformer.data.labelled import labelled_text
from linear_transformer.data.labelled.labelled_batches import (
    LabelledSource,
    evaluation_batches,
    training_batches,
)
from linear_transformer.data.listops import dataset as listops
from linear_transformer.data.pathfinder import dataset as pathfinder
from linear_transformer.data.retrieval import dataset as retrieval
from linear_transformer.data.share import Share, check_shape
from linear_transformer.data.stream import Batch


@runtime_checkable
class SequenceSource(LabelledSource, Protocol):
    """Labelled sequences by split: "train", "validation" and "test".

    Attributes:
      name, licence: name and licence of the data set.
      vocab_size: number of ids, from 0.  In text, 0 is padding and byte b has id b + 1; pixels have
        256 grey levels and no padding.
      num_classes: number of labels, from 0.
      sequences_per_example: number of sequences of an example: 1, or 2 that are compared.
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
    def sequences_per_example(self) -> int: ...

    def read(self, item: Any, /) -> tuple[Integer[np.ndarray, " T"], ...]:
        """Returns the ids of each tower, at full length."""
        ...


DATASETS: dict[str, Callable[[Any], SequenceSource]] = {
    "listops": listops.load,
    "pathfinder": pathfinder.load,
    "imdb": labelled_text.load_imdb,
    "newsgroups": without_path(labelled_text.load_newsgroups),
    "spam": without_path(labelled_text.load_spam),
    "aan": retrieval.load_aan,
    "passages": without_path(retrieval.load_passages),
    **dict.fromkeys(images.DATASETS, image_tokens.load),
}


def load_source(config: Any) -> SequenceSource:
    """Loads the data set that `config.dataset` names.

    Raises:
      DataError: the name is unknown, files are missing or broken, or images are shorter than a
        row.
    """
    load = lookup(DATASETS, config.dataset, "config.data.dataset")
    check_shape(config.batch_size, config.sequence_length)
    source = load(config)
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
    sequence_length: int,
    seed: int,
    **share: Unpack[Share],
) -> grain.IterDataset:
    """Makes the endless dataset of training sequences, shuffled anew every epoch.

    For any number of processes, the processes together see the same examples.

    Args:
      source: source of the examples; its train split is read.
      sequence_length: tokens T of a row; longer sequences are truncated.
      seed: seed of the order, 0 to 2^32 - 1.
      **share: examples of this process, see `data.share.Share`.

    Returns:
      A dataset whose iterator has `get_state` and `set_state` and yields `inputs` (B, T) int32,
      0 after each sequence, `lengths` (B,) int32, `labels` (B,) int32, and `weights` (B,)
      float32, all 1.  With two sequences an example, inputs are (B, 2, T) and lengths (B, 2).

    Raises:
      DataError: a value is out of range; on reading, a file is broken.
    """
    check_shape(share["batch_size"], sequence_length)

    def read(item: Any, rng: np.random.Generator) -> Batch:
        del rng  # sequences have no random augmentation
        return _example(source.read(item), sequence_length)

    return training_batches(source, read, seed=seed, **share)


def evaluation_sequences(
    source: SequenceSource, split: str, *, sequence_length: int, **share: Unpack[Share]
) -> Iterator[Batch]:
    """Yields every example of a split once; rows of weight 0 fill up the last batch.

    Args:
      source: source of the examples.
      split: "train", "validation" or "test".
      sequence_length: tokens T of a row; longer sequences are truncated.
      **share: rows of this process, see `data.share.Share`.

    Raises:
      DataError: the split is unknown, a value is out of range, or a file is broken.
    """
    check_shape(share["batch_size"], sequence_length)

    def read(item: Any) -> Batch:
        return _example(source.read(item), sequence_length)

    return evaluation_batches(source, split, read, **share)


def _example(sequences: tuple[Integer[np.ndarray, " _"], ...], sequence_length: int) -> Batch:
    inputs = np.zeros((len(sequences), sequence_length), np.int32)
    lengths = np.array([min(ids.size, sequence_length) for ids in sequences], np.int32)
    for row, ids, length in zip(inputs, sequences, lengths, strict=True):
        row[:length] = ids[:length]
    if len(sequences) == 1:
        inputs, lengths = inputs[0], lengths[0]
    return {"inputs": inputs, "lengths": lengths}
