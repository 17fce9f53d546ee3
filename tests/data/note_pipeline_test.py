"""Windows of events: what is in them, that all events are, and that they can be had again."""

import json

import numpy as np
import pytest

from linear_transformer.data.errors import DataError
from linear_transformer.data.music import piano
from linear_transformer.data.music.note_pipeline import (
    END,
    PAD,
    START,
    EventCorpus,
    evaluation_events,
    training_events,
)

NUM_VALUES = (100, 50, 7)
TIME_SHIFT = np.array([0, 2, 10, 20, 50, 100, 500])
LENGTHS = (37, 90, 12, 200)


def make_corpus(lengths=LENGTHS, time_shift=TIME_SHIFT, augment=None):
    """Pieces (number of the event, number of the piece, a time shift)."""
    rng = np.random.default_rng(1)
    pieces = [
        np.stack([np.arange(n) % 100, np.full(n, i), rng.integers(7, size=n)], axis=-1)
        for i, n in enumerate(lengths)
    ]

    def encode(piece):
        return piece.astype(np.int32)

    return EventCorpus(
        name="numbers",
        licence="none",
        channels=("number", "piece", "time_shift"),
        num_values=NUM_VALUES,
        time_shift=time_shift,
        load=lambda: pieces,
        encode=encode,
        augment=augment or (lambda piece, rng: encode(piece)),
    )


def check_window(corpus, events):
    """PAD, START, consecutive events of one piece, END, PAD; returns the events' numbers."""
    kinds = events[:, 0] - NUM_VALUES[0]
    special = (kinds >= 0)[:, None]
    assert (special == (events >= NUM_VALUES)).all()
    assert ((events - NUM_VALUES == kinds[:, None]) | ~special).all()
    notes = np.flatnonzero(kinds < 0)
    before, after = (kinds[: notes[0]], kinds[notes[-1] + 1 :]) if notes.size else (kinds, [])
    if notes.size:
        inside = events[notes[0] : notes[-1] + 1]
        piece = corpus.load()[inside[0, 1]]
        first = int(inside[0, 0]) if len(piece) <= 100 else None
        if first is not None:
            np.testing.assert_array_equal(inside, piece[first : first + len(inside)])
        if len(before):
            assert before[-1] == START
            assert (before[:-1] == PAD).all()
        if len(after):
            assert after[0] == END
            assert (after[1:] == PAD).all()
    return notes


def take(dataset, count):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(count)]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_training_windows():
    corpus = make_corpus()
    batches = take(training_events(corpus, batch_size=4, num_events=32, seed=0), 100)
    seen = {START: 0, END: 0, PAD: 0}
    shares = []
    for batch in batches:
        assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
            "events": ((4, 32, 3), "int32"),
            "elapsed": ((4, 32), "int32"),
            "masked": ((4, 32), "bool"),
            "weights": ((4, 32), "float32"),
        }
        shares.append(batch["masked"].mean())
        kinds = batch["events"][..., 0] - NUM_VALUES[0]
        counted = batch["masked"] & (kinds != PAD) & (kinds != START)
        np.testing.assert_array_equal(batch["weights"], counted)
        for events, elapsed in zip(batch["events"], batch["elapsed"], strict=True):
            check_window(corpus, events)
            shifts = np.append(TIME_SHIFT, [0, 0, 0])[events[:, 2]]
            np.testing.assert_array_equal(elapsed[1:], np.cumsum(shifts)[:-1])
            assert elapsed[0] == 0
        for kind in seen:
            seen[kind] += (kinds == kind).sum()
    assert all(seen.values())
    # Masked with probability 1 - p, p uniform up to a half and one for the batch.
    assert 0.7 < np.mean(shares) < 0.8
    assert min(shares) < 0.6
    assert max(shares) > 0.9


def test_every_event_is_trained_on():
    corpus = make_corpus()
    wanted = {(i, n) for p in corpus.pieces("train") for n, i in p[:, :2].tolist()}
    seen = set()
    for batch in take(training_events(corpus, batch_size=8, num_events=16, seed=3), 20):
        seen |= {(i, n) for n, i in batch["events"][..., :2].reshape(-1, 2).tolist()}
    assert wanted <= seen


def test_epochs_differ():
    """Windows come again, with other augmentations and masks."""
    corpus = make_corpus(
        (5, 5, 5), augment=lambda piece, rng: piece.astype(np.int32) * 0 + rng.integers(7)
    )
    batches = take(training_events(corpus, batch_size=1, num_events=4, seed=0), 300)
    values = [
        int(b["events"][b["events"][..., 0] < 100][0, 0])
        for b in batches
        if (b["events"] < 7).any()
    ]
    assert len(set(values[:50])) > 3
    assert values[:40] != values[40:80]
    masks = {b["masked"].tobytes() for b in batches}
    assert len(masks) > 5


def test_resume_and_seeds():
    def dataset(seed):
        return training_events(make_corpus(), batch_size=2, num_events=16, seed=seed)

    expected = take(dataset(0), 12)
    assert_same(take(dataset(0), 12), expected)
    iterator = iter(dataset(0))
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    again = iter(dataset(0))
    again.set_state(state)
    assert_same([next(again) for _ in range(7)], expected[5:])
    other = take(dataset(1), 12)
    assert any((a["events"] != b["events"]).any() for a, b in zip(other, expected, strict=True))


def test_processes_share():
    """Two processes visit the windows that one visits."""

    def windows(count, **shard):
        data = training_events(make_corpus(), batch_size=2, num_events=16, seed=0, **shard)
        return [events.tobytes() for batch in take(data, count) for events in batch["events"]]

    alone = windows(20)
    shared = [windows(10, process_index=i, process_count=2) for i in range(2)]
    assert sorted(alone) == sorted(shared[0] + shared[1])


@pytest.mark.parametrize("num_events", [8, 16, 39])
def test_evaluation_is_everything_once(num_events):
    corpus = make_corpus()
    batches = list(evaluation_events(corpus, "train", batch_size=3, num_events=num_events))
    events = np.concatenate([batch["events"] for batch in batches])
    for window in events:
        check_window(corpus, window)
    kinds = events[..., 0] - NUM_VALUES[0]
    pieces = corpus.pieces("train")
    np.testing.assert_array_equal(events[kinds < 0], np.concatenate(pieces))
    assert (kinds == START).sum() == (kinds == END).sum() == len(pieces)
    assert not np.concatenate([b["weights"] for b in batches])[kinds == PAD].any()
    again = evaluation_events(corpus, "train", batch_size=3, num_events=num_events)
    assert_same(list(again), batches)
    # The masks are those of the windows, whatever the batches.
    other = list(evaluation_events(corpus, "train", batch_size=5, num_events=num_events))
    counts = [sum(b["weights"].sum() for b in bs) for bs in (batches, other)]
    assert counts[0] == counts[1]


def test_evenly_spaced():
    corpus = make_corpus(time_shift=None)
    batch = next(evaluation_events(corpus, "test", batch_size=2, num_events=8))
    assert not batch["elapsed"].any()


def test_mistakes():
    corpus = make_corpus()
    with pytest.raises(DataError, match=r"config\.data\.batch_size = 0"):
        training_events(corpus, batch_size=0, num_events=8, seed=0)
    with pytest.raises(DataError, match=r"config\.seed = -1"):
        training_events(corpus, batch_size=1, num_events=8, seed=-1)
    with pytest.raises(DataError, match=r'unknown split "dev" of numbers: use train, validation'):
        next(evaluation_events(corpus, "dev", batch_size=1, num_events=8))


def test_augmented_piano_windows():
    """A window of notes that were stretched: its inner time shifts are those of its notes."""
    rng = np.random.default_rng(0)
    notes = np.zeros(100, piano.midi.NOTE)
    notes["onset"] = np.cumsum(rng.uniform(0.1, 0.5, 100))
    notes["duration"], notes["pitch"], notes["velocity"] = 0.2, 30 + np.arange(100) % 50, 64
    corpus = piano.corpus_of("notes", "none", lambda: [notes] * 3)
    batches = take(training_events(corpus, batch_size=4, num_events=16, seed=0), 30)
    values = np.concatenate([b["events"] for b in batches])
    inside = (values[..., 0] < 88).all(axis=1)
    shifts = values[inside][..., 3]
    assert inside.sum() > 50
    assert (shifts >= 4).all()  # the shortest is 0.09 s, also at the window's end
    assert len(np.unique(values[inside][..., 1])) > 20
    assert (np.diff(values[inside][..., 0], axis=1) % 50 == 1).all()
