"""Part of each batch that a process reads, and its checks."""

from collections.abc import Iterator
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Int

from linear_transformer.data.errors import DataError


class Share(TypedDict):
    """Part of each batch that a process reads, as arguments of a pipeline.

    Attributes:
      batch_size: rows B of a batch of this process.
      process_index: index of this process, 0 by default.
      process_count: number of processes that share the rows of each batch, 1 by default.
    """

    batch_size: int
    process_index: NotRequired[int]
    process_count: NotRequired[int]


def check_shape(batch_size: int, sequence_length: int) -> None:
    """Raises a DataError, which names the config key, unless both values are at least 1."""
    for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
        if value < 1:
            raise DataError(f"config.data.{name} = {value}: must be at least 1")


def check_seed(seed: int) -> None:
    """Raises a DataError, which names the config key, unless 0 <= seed < 2^32."""
    if not 0 <= seed < 2**32:
        raise DataError(f"config.seed = {seed}: must be from 0 to 2^32 - 1")


def share_of(batch_size: int, process_index: int, process_count: int) -> Share:
    """Returns the part of each batch of `batch_size` rows that a process reads.

    Raises:
      DataError: the processes can't share a batch evenly.
    """
    if batch_size % process_count:
        raise DataError(
            f"config.data.batch_size ({batch_size}) is not a multiple of the {process_count} "
            "processes"
        )
    return Share(
        batch_size=batch_size // process_count,
        process_index=process_index,
        process_count=process_count,
    )


def own_examples(share: Share) -> slice:
    """Returns the slice of all training examples that this process reads."""
    return slice(share.get("process_index", 0), None, share.get("process_count", 1))


def row_numbers(
    examples: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Int[np.ndarray, " B"]]:
    """Yields the indices of the examples that this process reads for each batch of an evaluation.

    The processes together read every example once.  All processes have the same number of batches;
    indices >= `examples` are padding.

    Args:
      examples: number of examples.
      batch_size, process_index, process_count: see `Share`.
    """
    for first in range(0, examples, batch_size * process_count):
        yield first + process_index * batch_size + np.arange(batch_size)
