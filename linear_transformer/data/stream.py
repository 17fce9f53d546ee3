"""Documents as one stream of tokens, and its pieces.

The stream is the concatenation of `[bos, t1, ..., tn]` over all documents. A document of n tokens
has n predictions: position j is the input, position j + 1 the target. All pipelines are index
arithmetic on this one array.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]


class Sequences(NamedTuple):
    """Arrays of a batch with a time axis, which may be sharded over devices.

    Attributes:
      names: keys of the arrays with a time axis; empty if an example is not a sequence.
      axis: index of the time axis in these arrays.
      num_prefix_tokens: number of tokens that the model adds in front of a row.
    """

    names: tuple[str, ...] = ()
    axis: int = 1
    num_prefix_tokens: int = 0


NO_SEQUENCES = Sequences()
# Arrays of tokens, and arrays with one value for each token.
TOKENS = Sequences(("inputs", "targets", "weights", "segment_ids", "positions"))


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
