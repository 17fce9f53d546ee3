"""Training batches with Grain: endless, shuffled, sharded, and resumable to the exact batch.

The datasets are pure functions of (corpus, seed, index). The state of an iterator is a small dict
of integers, valid JSON, for a corpus of any size.
"""

import functools
from typing import Unpack

import grain
import numpy as np

from linear_transformer.data.errors import DataError
from linear_transformer.data.share import Share, check_seed, check_shape, own_examples
from linear_transformer.data.stream import Batch, concatenate, cut
from linear_transformer.data.text.corpus import Corpus

PACKINGS = ("contiguous", "packed", "carried")
# More bins leave less padding, but the first-fit packer fills all of them before it emits one.
_NUM_PACKING_BINS = 64
# The corpus is in memory, so threads would only wait for each other.
_READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def training_dataset(
    corpus: Corpus,
    *,
    sequence_length: int,
    seed: int,
    packing: str,
    **share: Unpack[Share],
) -> grain.IterDataset:
    """Makes the dataset of training batches.

    "contiguous" reads the train split as a ring of documents, each beginning with BOS. An epoch
    cuts the ring into windows of T predictions from a random offset, so that the borders differ
    between epochs, and visits the windows in random order. Every prediction is visited once per
    epoch, except for the last (stream length mod T). A BOS as target has weight 0.

    "packed" cuts each document into pieces of at most T predictions, in random order each epoch,
    and packs the pieces first-fit into rows (grain's `FirstFitPackIterDataset`). Every prediction
    is visited exactly once per epoch. `segment_ids` distinguish the pieces of a row.

    "carried" cuts the same ring, from a random offset each epoch, into one part for each row of the
    batch. A row reads the windows of its part one after the other, for a model that carries its
    state from batch to batch. `segment_ids` number the documents, so that the state ends with its
    document.

    For any number of processes, the processes together visit the same windows (or pieces), and each
    window belongs to exactly one process.

    Args:
      corpus: the documents; its train split is read.
      sequence_length: predictions T of a row.
      seed: seed of order and window borders, 0 to 2^32 - 1.
      packing: "contiguous", "packed" or "carried".
      **share: rows of this process, see `data.share.Share`.

    Returns:
      A dataset whose iterator has `get_state` and `set_state` and yields `inputs` and `targets`
      (B, T) int32 and `weights` (B, T) float32. Packed and carried batches also have `segment_ids`
      (B, T) int32, at least 1 and 0 for padding, and `positions` (B, T) int32 within the piece or
      the document.

    Raises:
      DataError: a value is out of range, or the text is shorter than one row.
    """
    batch_size = share["batch_size"]
    check_shape(batch_size, sequence_length)
    check_seed(seed)
    if packing not in PACKINGS:
        raise DataError(f'config.data.packing = "{packing}": use {" or ".join(PACKINGS)}')
    shard = own_examples(share)
    if packing == "packed":
        return _packed(corpus, batch_size, sequence_length, seed, shard)
    ring = _Ring(corpus, sequence_length, seed)
    if packing == "contiguous":
        windows = grain.MapDataset.range(ring.num_windows).seed(seed).map_with_index(ring.window)
        windows = windows.shuffle()
    else:
        lanes = batch_size * share.get("process_count", 1)
        read = functools.partial(ring.carried, lanes, ring.steps(lanes))
        windows = grain.MapDataset.range(lanes * ring.steps(lanes)).seed(seed).map_with_index(read)
    return windows.repeat()[shard].to_iter_dataset(_READ_OPTIONS).batch(batch_size)


class _Ring:
    """Train split of a corpus as a ring of documents, cut into windows of T predictions.

    Attributes:
      num_windows: number of windows of an epoch.
    """

    def __init__(self, corpus: Corpus, sequence_length: int, seed: int):
        self._bos_id = corpus.tokenizer.bos_id
        ring = concatenate(corpus.documents("train"), self._bos_id, corpus.tokenizer.vocab_size)
        self._name, self._size, self._time, self._seed = (
            corpus.name,
            ring.size,
            sequence_length,
            seed,
        )
        self._starts = np.flatnonzero(ring == self._bos_id)  # of the documents
        self.num_windows = ring.size // sequence_length
        if not self.num_windows:
            raise DataError(
                f"config.data.sequence_length = {sequence_length}: "
                f"the train split of {corpus.name} has only {ring.size} tokens"
            )
        # The ring is extended by one window, so that every window is one slice.
        self._stream = np.concatenate([ring, np.resize(ring, sequence_length)])
        self._phase = functools.lru_cache(maxsize=2)(self._draw_phase)

    def _draw_phase(self, epoch: int) -> int:
        return int(np.random.default_rng((self._seed, epoch)).integers(self._size))

    def steps(self, lanes: int) -> int:
        """Number of windows that each of so many rows reads in an epoch."""
        steps = self.num_windows // lanes
        if not steps:
            raise DataError(
                f"config.data.batch_size = {lanes}: the train split of {self._name} has only "
                f"{self.num_windows} windows of {self._time} tokens"
            )
        return steps

    def window(self, index: int, _: int) -> Batch:
        """Reads a window by its number, counted on from epoch to epoch."""
        epoch, number = divmod(index, self.num_windows)
        return self._read(self._phase(epoch) + number * self._time)

    def carried(self, lanes: int, steps: int, index: int, _: int) -> Batch:
        """Reads the next window of a row; `index` runs over rows, then over steps."""
        step, lane = divmod(index, lanes)
        epoch, step = divmod(step, steps)
        place = self._phase(epoch) + (lane * steps + step) * self._time
        places = place + np.arange(self._time)
        turn, places = np.divmod(places, self._size)
        document = np.searchsorted(self._starts, places, side="right") - 1
        # A document that is read again, in the next turn or epoch, is another one.
        number = (2 * epoch + turn) * len(self._starts) + document
        return self._read(place) | {
            "segment_ids": (1 + number).astype(np.int32),
            "positions": (places - self._starts[document]).astype(np.int32),
        }

    def _read(self, place: int) -> Batch:
        start = place % self._size
        window = self._stream[start : start + self._time + 1].astype(np.int32)
        weights = (window[1:] != self._bos_id).astype(np.float32)
        return {"inputs": window[:-1], "targets": window[1:], "weights": weights}


def _packed(
    corpus: Corpus, batch_size: int, sequence_length: int, seed: int, shard: slice
) -> grain.IterDataset:
    documents = corpus.documents("train")
    stream = concatenate(documents, corpus.tokenizer.bos_id, corpus.tokenizer.vocab_size)
    pieces = cut(documents, sequence_length)
    if not len(pieces):
        raise DataError(f"{corpus.name}: the train split has no tokens")

    def piece(number: int) -> Batch:
        start, end = pieces.start[number], pieces.start[number] + pieces.length[number]
        return {
            "inputs": stream[start:end].astype(np.int32),
            "targets": stream[start + 1 : end + 1].astype(np.int32),
        }

    def finish(batch: Batch) -> Batch:
        segment_ids = batch["inputs_segment_ids"]
        return {
            "inputs": batch["inputs"],
            "targets": batch["targets"],
            "weights": (segment_ids > 0).astype(np.float32),
            "segment_ids": segment_ids,
            "positions": batch["inputs_positions"],
        }

    shuffled = grain.MapDataset.range(len(pieces)).seed(seed).map(piece).shuffle()
    rows = grain.experimental.FirstFitPackIterDataset(
        shuffled.repeat()[shard].to_iter_dataset(_READ_OPTIONS),
        length_struct={"inputs": sequence_length, "targets": sequence_length},
        num_packing_bins=_NUM_PACKING_BINS,
        seed=seed,
    )
    return rows.batch(batch_size).map(finish)


def skip_batches(iterator: grain.DatasetIterator, batches: int) -> None:
    """Advances a new iterator by a number of batches.

    A run that continues with another number of readers calls this function. If the iterator's
    state is a single index, the readers together continue with the batches of an uninterrupted run.
    Otherwise (packed rows, which each reader fills by itself) the batches are read and dropped.
    """
    if not batches:
        return
    next(iterator)
    position = iterator.get_state()
    if position.keys() == {"next_index"}:
        iterator.set_state({"next_index": position["next_index"] * batches})
        return
    for _ in range(batches - 1):
        next(iterator)
