"""Documents as one stream of tokens, and its pieces.

The stream is the concatenation of `[bos, t1, ..., tn]` over all documents. A document of n tokens
has n predictions: position j is the input, position j + 1 the target. All pipelines are index
arithmetic on this one array.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from linear_transformer.data.errors import DataError

Batch = dict[str, np.ndarray]


class Sequences(NamedTuple):
    """Arrays of a batch with a time axis, which may be sharded over devices.

    Attributes:
      names: keys of the arrays with a time axis; empty if an example is not a sequence.
      axis: index of the time axis in these arrays.
      in_front: number of tokens that the model adds in front of a row.
    """

    names: tuple[str, ...] = ()
    axis: int = 1
    in_front: int = 0


NO_SEQUENCES = Sequences()
# Arrays of tokens, and arrays with one value for each token.
TOKENS = Sequences(("inputs", "targets", "weights", "segment_ids", "positions"))


def check_shape(batch_size: int, sequence_length: int) -> None:
    """Raises a DataError, which names the config key, unless both values are at least 1."""
    for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
        if value < 1:
            raise DataError(f"config.data.{name} = {value}: must be at least 1")


def rows_per_process(batch_size: int, process_count: int) -> int:
    """Returns the number of rows of a batch that one process reads.

    Raises:
      DataError: the processes can't share a batch evenly.
    """
    if batch_size % process_count:
        raise DataError(
            f"config.data.batch_size ({batch_size}) is not a multiple of the {process_count} "
            "processes"
        )
    return batch_size // process_count


def row_numbers(
    examples: int, batch_size: int, process_index: int, process_count: int
) -> Iterator[Int[np.ndarray, " B"]]:
    """Yields the indices of the examples that this process reads for each batch of an evaluation.

    The processes together read every example once.  All processes have the same number of batches;
    indices >= `examples` are padding.

    Args:
      examples: number of examples.
      batch_size: rows B of a batch of this process.
      process_index: index of this process.
      process_count: number of processes that share the rows of each batch.
    """
    for first in range(0, examples, batch_size * process_count):
        yield first + process_index * batch_size + np.arange(batch_size)


def concatenate(documents: Sequence[np.ndarray], bos_id: int, vocab_size: int) -> np.ndarray:
    """Returns the stream, shape (sum of (n + 1),), in the smallest unsigned dtype."""
    stream = np.empty(sum(d.size + 1 for d in documents), np.min_scalar_type(vocab_size - 1))
    start = 0
    for document in documents:
        stream[start] = bos_id
        stream[start + 1 : start + 1 + document.size] = document
        start += 1 + document.size
    return stream


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Pieces of at most T predictions, in stream order; each piece is part of one document.

    Attributes:
      document: (N,) int64, index of the document.
      offset: (N,) int64, position of the first input within `[bos, t1, ..., tn]`.
      start: (N,) int64, position of the first input within the stream.
      length: (N,) int64, number of predictions, 1 to T.
    """

    document: np.ndarray
    offset: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return self.start.size


def cut(documents: Sequence[np.ndarray], sequence_length: int) -> Pieces:
    """Cuts every document into pieces of `sequence_length` predictions; the last may be shorter."""
    sizes = np.array([d.size for d in documents], np.int64)
    counts = -(-sizes // sequence_length)
    document = np.repeat(np.arange(sizes.size), counts)
    first_piece = np.cumsum(counts) - counts
    offset = (np.arange(document.size) - first_piece[document]) * sequence_length
    stream_start = np.cumsum(sizes + 1) - (sizes + 1)
    return Pieces(
        document=document,
        offset=offset,
        start=stream_start[document] + offset,
        length=np.minimum(sizes[document] - offset, sequence_length),
    )


def gather(
    stream: np.ndarray, start: np.ndarray, length: np.ndarray, sequence_length: int
) -> Batch:
    """Reads B pieces into a batch of fixed shape.

    Args:
      stream: the stream of tokens.
      start: (B,) position of the first input of each row.
      length: (B,) number of predictions of each row, 0 to T; the rest of a row is padding.
      sequence_length: tokens T of a row.

    Returns:
      `inputs` and `targets`, (B, T) int32, 0 for padding; `weights`, (B, T) float32, 1 or 0.
    """
    steps = np.arange(sequence_length)
    valid = steps < length[:, None]
    index = np.where(valid, start[:, None] + steps, 0)
    return {
        "inputs": np.where(valid, stream[index], 0).astype(np.int32),
        "targets": np.where(valid, stream[index + 1], 0).astype(np.int32),
        "weights": valid.astype(np.float32),
    }
