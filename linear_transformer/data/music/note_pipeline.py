"""Windows of musical events with masks, for training (with Grain) and evaluation.

An event is a fixed number of tokens, one per channel: the four attributes of a note, or the notes
of four voices.  Each channel has its own vocabulary: its values, then PAD, START and END.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Unpack

import grain
import numpy as np
from jaxtyping import Bool, Int

from linear_transformer.data.errors import split_of
from linear_transformer.data.share import Share, check_seed, check_shape, own_examples, row_numbers
from linear_transformer.data.stream import Batch
from linear_transformer.data.text.corpus import split_documents

# Special tokens; their ids follow the values of a channel.
PAD, START, END = range(3)
NUM_SPECIAL = 3
_MAX_HOP = 10  # events between the starts of training windows
_EPOCHS = 2**32  # practically endless; the length of an endless dataset overflows in batches of 1
_READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)

Piece = np.ndarray
Events = Int[np.ndarray, "N C"]
Window = Int[np.ndarray, "M C"]


@dataclasses.dataclass(frozen=True)
class EventCorpus:
    """Pieces of music, and the functions that convert pieces to events.

    Attributes:
      name, licence: name and licence of the data set.
      channels: names of the tokens of an event.
      num_values: number of values of each channel, without special tokens.
      time_shift: time to the next event for each value of the last channel, in hundredths of a
        second; None if events are evenly spaced.
      load: reads the pieces, each an array of notes or steps; called at their first use.
      encode: converts a piece, or a part of it, to events.
      augment: converts a piece to events after a random, musically valid change.
    """

    name: str
    licence: str
    channels: tuple[str, ...]
    num_values: tuple[int, ...]
    time_shift: np.ndarray | None
    load: Callable[[], Sequence[Piece]]
    encode: Callable[[Piece], Events]
    augment: Callable[[Piece, np.random.Generator], Events]

    @functools.cached_property
    def splits(self) -> Mapping[str, Sequence[Piece]]:
        """Pieces of "train", "validation" and "test"."""
        return split_documents(self.load())

    def pieces(self, split: str) -> Sequence[Piece]:
        """Returns the pieces of a split; raises a DataError for an unknown name."""
        return split_of(self.splits, split, self.name)

    def special(self, token: int) -> Int[np.ndarray, " C"]:
        """Returns the event of PAD, START or END."""
        return np.array(self.num_values, np.int32) + token

    def elapsed(self, events: Int[np.ndarray, "*batch N C"]) -> Int[np.ndarray, "*batch N"]:
        """Returns times since the first event, in hundredths of a second; 0 if evenly spaced."""
        if self.time_shift is None:
            return np.zeros(events.shape[:-1], np.int32)
        shifts = np.append(self.time_shift, [0] * NUM_SPECIAL)[events[..., -1]]
        return (np.cumsum(shifts, axis=-1) - shifts).astype(np.int32)


def training_events(
    corpus: EventCorpus,
    *,
    num_events: int,
    seed: int,
    **share: Unpack[Share],
) -> grain.IterDataset:
    """Makes the endless, shuffled dataset of augmented windows with random masks.

    Windows begin every `min(N / 4, 10)` events, up to half a window before and after the piece.
    Each batch draws p from U(0, 0.5), and masks all channels of each event with probability 1 - p.

    Args:
      corpus: corpus of pieces; its train split is read.
      num_events: events N of a window.
      seed: seed of order, augmentation and masks, 0 to 2^32 - 1.
      **share: windows of this process, see `data.share.Share`.

    Returns:
      A dataset whose iterator has `get_state` and `set_state` and yields `events` (B, N, C) int32,
      `elapsed` (B, N) int32 in hundredths of a second, `masked` (B, N) bool, and `weights` (B, N)
      float32: 1 for masked events that are neither PAD nor START.

    Raises:
      DataError: a value is out of range.
    """
    batch_size = share["batch_size"]
    check_shape(batch_size, num_events)
    check_seed(seed)
    pieces = corpus.pieces("train")
    hop = max(min(num_events // 4, _MAX_HOP), 1)
    half = num_events // 2
    starts = [
        (number, start)
        for number, piece in enumerate(pieces)
        for start in range(-half, max(len(piece) + 2 - half, 1 - half), hop)
    ]

    def window(number: int, rng: np.random.Generator) -> Window:
        piece, start = starts[number]
        return _augmented_window(corpus, pieces[piece], start, num_events, rng)

    def mask(events: Int[np.ndarray, "B N C"], rng: np.random.Generator) -> Batch:
        kept = rng.uniform(0, 0.5)
        return masked_batch(corpus, events, rng.random(events.shape[:2]) >= kept)

    windows = grain.MapDataset.range(len(starts)).seed(seed).shuffle().repeat(_EPOCHS)
    windows = windows[own_examples(share)].random_map(window)
    return windows.batch(batch_size).random_map(mask).to_iter_dataset(_READ_OPTIONS)


def evaluation_events(
    corpus: EventCorpus, split: str, *, num_events: int, **share: Unpack[Share]
) -> Iterator[Batch]:
    """Yields every event of a split in exactly one window, with the same masks at every call.

    Each window has its own p.  PAD fills up the last window of a piece and the last batch.

    Args:
      corpus: corpus of pieces.
      split: "train", "validation" or "test".
      num_events: events N of a window.
      **share: rows of this process, see `data.share.Share`.

    Raises:
      DataError: the split is unknown, or a value is out of range.
    """
    check_shape(share["batch_size"], num_events)
    windows = []
    for piece in corpus.pieces(split):
        events = framed(corpus, corpus.encode(piece), True, True)
        for start in range(0, len(events), num_events):
            windows.append(padded(corpus, events[start : start + num_events], 0, num_events))
    masked = []
    for number in range(len(windows)):
        rng = np.random.default_rng((20210714, number))
        masked.append(rng.random(num_events) >= rng.uniform(0, 0.5))
    batches = list(row_numbers(len(windows), **share))
    rows_of_all = share["batch_size"] * share.get("process_count", 1)
    missing = len(batches) * rows_of_all - len(windows)
    windows += [padded(corpus, windows[0][:0], 0, num_events)] * missing
    masked += [np.zeros(num_events, bool)] * missing
    all_windows, all_masked = np.stack(windows), np.stack(masked)
    for rows in batches:
        yield masked_batch(corpus, all_windows[rows], all_masked[rows])


def masked_batch(
    corpus: EventCorpus, events: Int[np.ndarray, "B N C"], masked: Bool[np.ndarray, "B N"]
) -> Batch:
    """Makes a batch, as in `training_events`, from events and masks."""
    first = events[..., 0] - corpus.num_values[0]
    counted = masked & (first != PAD) & (first != START)
    return {
        "events": events,
        "elapsed": corpus.elapsed(events),
        "masked": masked,
        "weights": counted.astype(np.float32),
    }


def _augmented_window(
    corpus: EventCorpus, piece: Piece, start: int, num_events: int, rng: np.random.Generator
) -> Window:
    """Encodes events `start` to `start + N` of (START, the piece, END), and no other part."""
    first, last = max(start - 1, 0), min(start - 1 + num_events, len(piece))
    # One additional note gives the last time shift.
    events = corpus.augment(piece[first : last + 1], rng)
    if last < len(piece):
        events = events[:-1]
    ends = start - 1 + num_events > len(piece)
    events = framed(corpus, events, start <= 0, ends)
    return padded(corpus, events, max(-start, 0), num_events)


def framed(corpus: EventCorpus, events: Events, starts: bool, ends: bool) -> Window:
    """Adds START if the events start the piece, and END if they end it."""
    before = [corpus.special(START)] * starts
    after = [corpus.special(END)] * ends
    return np.array([*before, *events, *after], np.int32).reshape(-1, len(corpus.channels))


def padded(corpus: EventCorpus, events: Events, before: int, num_events: int) -> Window:
    """Pads events to `num_events`, with `before` PAD events in front and the others behind."""
    window = np.tile(corpus.special(PAD), (num_events, 1))
    window[before : before + len(events)] = events
    return window
