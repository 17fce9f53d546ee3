"""The chorales: the grid of four voices, transposition, and what is said without music21."""

import importlib.util
import types

import numpy as np
import pytest

from linear_transformer.data.errors import DataError
from linear_transformer.data.music import chorales


def note(offset, length, *pitches):
    pitches = [types.SimpleNamespace(midi=p) for p in pitches]
    return types.SimpleNamespace(offset=offset, quarterLength=length, pitches=pitches)


def part(*notes):
    return types.SimpleNamespace(flatten=lambda: types.SimpleNamespace(notes=notes))


def test_grid():
    score = types.SimpleNamespace(
        highestTime=1.5,
        parts=[
            part(note(0, 0.5, 70), note(1, 0.5, 72)),
            part(note(0.25, 1.25, 60, 64)),
            part(note(0, 1.5, 50)),
            part(),
        ],
    )
    expected = [
        [70, 70, 0, 0, 72, 72],
        [0, 64, 64, 64, 64, 64],
        [50] * 6,
        [0] * 6,
    ]
    np.testing.assert_array_equal(chorales._grid(score).T, expected)


def test_encode_and_augment():
    rng = np.random.default_rng(0)
    pitches = np.array([[81, 60, 0, 36], [70, 60, 50, 40]], np.int16)
    np.testing.assert_array_equal(chorales.encode(pitches), [[46, 25, 0, 1], [35, 25, 15, 5]])
    # From end to end of the range: no room to move.
    np.testing.assert_array_equal(chorales.augment(pitches, rng), chorales.encode(pitches))
    moved = [chorales.augment(pitches[1:], rng) - chorales.encode(pitches[1:]) for _ in range(200)]
    assert {tuple(set(m.ravel().tolist())) for m in moved} == {(i,) for i in range(-4, 7)}
    rests = np.zeros((3, 4), np.int16)
    np.testing.assert_array_equal(chorales.augment(rests, rng), rests)


def test_without_music21(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    corpus = chorales.load(None)
    with pytest.raises(DataError, match=r"needs music21: pip install -r requirements-music\.txt"):
        corpus.pieces("train")


@pytest.mark.slow
def test_chorales():
    try:
        corpus = chorales.load(None)
        sizes = {split: len(pieces) for split, pieces in corpus.splits.items()}
    except DataError as error:
        pytest.skip(str(error))
    assert sizes == {"train": 315, "validation": 18, "test": 18}
    events = np.concatenate([corpus.encode(p) for s in corpus.splits for p in corpus.pieces(s)])
    assert len(events) == 75_044
    assert (events >= 0).all()
    assert (events < corpus.num_values).all()
    assert events.max() == 46
