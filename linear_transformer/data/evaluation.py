"""Batches with every token of every document exactly once, with or without a carried state."""

import heapq
from collections.abc import Iterator, Sequence
from typing import Unpack

import numpy as np

from linear_transformer.data.errors import DataError
from linear_transformer.data.share import Share, check_shape, row_numbers
from linear_transformer.data.stream import Batch, Pieces, concatenate, cut, gather
from linear_transformer.data.text.tokenizers import Tokenizer


def evaluation_batches(
    documents: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    **share: Unpack[Share],
) -> Iterator[Batch]:
    """Yields windows of documents that a model reads without the text before them.

    A window is a row of at most T predictions of one document. Its first input is BOS at the start
    of the document, and the preceding token otherwise. The ends of rows and of the last batch are
    filled with padding of weight 0, so that all batches have one shape.

    Args:
      documents: arrays of token ids, without BOS.
      tokenizer: the tokenizer that made the ids.
      sequence_length: predictions T of a row.
      **share: rows of this process, see `data.share.Share`.

    Yields:
      `inputs` and `targets`, (B, T) int32, and `weights`, (B, T) float32.

    Raises:
      DataError: the documents have no tokens, or a size is less than 1.
    """
    batch_size = share["batch_size"]
    check_shape(batch_size, sequence_length)
    stream, pieces = _cut_stream(documents, tokenizer, sequence_length)
    for rows in row_numbers(len(pieces), **share):
        rows = rows[rows < len(pieces)]
        start, length = (
            np.pad(column[rows], (0, batch_size - rows.size))
            for column in (pieces.start, pieces.length)
        )
        yield gather(stream, start, length, sequence_length)


def stateful_batches(
    documents: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    sequence_length: int,
    multiple: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields consecutive pieces of documents, for a model that carries its state.

    Each row of the batches is a lane: it reads its documents one after the other, T predictions per
    step. Documents are assigned from the longest to the shortest, each to the lane with the fewest
    predictions so far.

    Args:
      documents: arrays of token ids, without BOS.
      tokenizer: the tokenizer that made the ids.
      batch_size: largest number of lanes B of this process.
      sequence_length: predictions T of a step.
      multiple: lanes without documents are added until B is a multiple of this number.
      process_index: index of this process.
      process_count: number of processes that share the lanes.

    Yields:
      With B lanes: `inputs` and `targets`, (B, T) int32; `weights`, (B, T) float32, 0 after the
      end of a document and in a finished lane; `positions`, (B, T) int32, of the inputs
      within `[bos, t1, ..., tn]`; `reset`, (B,) bool, True if the lane begins a document, so
      that its state must be zeroed before this step.

    Raises:
      DataError: the documents have no tokens, or a size is less than 1.
    """
    check_shape(batch_size, sequence_length)
    stream, pieces = _cut_stream(documents, tokenizer, sequence_length)
    lanes = _lanes(pieces, batch_size * process_count)
    num_steps = max(map(len, lanes))
    own = -(-len(lanes) // (multiple * process_count)) * multiple
    lanes += [[]] * (own * process_count - len(lanes))
    lanes = lanes[process_index * own : (process_index + 1) * own]
    steps = np.arange(sequence_length)
    for step in range(num_steps):
        active = np.array([step < len(lane) for lane in lanes])
        # A finished lane repeats its last piece with length 0, so its whole row is padding.
        numbers = np.array([lane[min(step, len(lane) - 1)] if lane else 0 for lane in lanes])
        offset = np.where(active, pieces.offset[numbers], 0)
        batch = gather(
            stream,
            pieces.start[numbers],
            np.where(active, pieces.length[numbers], 0),
            sequence_length,
        )
        batch["positions"] = (offset[:, None] + steps).astype(np.int32)
        batch["reset"] = active & (offset == 0)
        yield batch


def _cut_stream(
    documents: Sequence[np.ndarray], tokenizer: Tokenizer, sequence_length: int
) -> tuple[np.ndarray, Pieces]:
    pieces = cut(documents, sequence_length)
    if not len(pieces):
        raise DataError("the split has no tokens: nothing to evaluate")
    return concatenate(documents, tokenizer.bos_id, tokenizer.vocab_size), pieces


def _lanes(pieces: Pieces, batch_size: int) -> list[list[int]]:
    """Distributes the documents; returns the piece indices of each lane in reading order."""
    by_document = np.split(np.arange(len(pieces)), np.flatnonzero(np.diff(pieces.document)) + 1)
    by_document.sort(key=len, reverse=True)
    lanes: list[list[int]] = [[] for _ in range(min(batch_size, len(by_document)))]
    loads = [(0, lane) for lane in range(len(lanes))]
    for numbers in by_document:
        load, lane = heapq.heappop(loads)
        lanes[lane].extend(numbers.tolist())
        heapq.heappush(loads, (load + numbers.size, lane))
    return lanes
