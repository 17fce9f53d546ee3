"""The ten MAESTRO pieces, a folder of MIDI files, and what augmentation may change."""

import types

import numpy as np
import pytest
from etils import epath

from linear_transformer.data.errors import DataError, FetchError
from linear_transformer.data.io.array_cache import cached_arrays
from linear_transformer.data.music import midi, piano


def config(path=""):
    return types.SimpleNamespace(dataset="", path=str(path))


@pytest.fixture(scope="module")
def maestro():
    """Needs the network, once: the tests of it are slow."""
    corpus = piano.load_maestro(config())
    try:
        corpus.splits  # noqa: B018
    except FetchError as error:
        pytest.skip(str(error))
    return corpus


@pytest.mark.slow
def test_maestro(maestro):
    sizes = {split: [len(p) for p in pieces] for split, pieces in maestro.splits.items()}
    assert sizes == {
        "train": [12418, 3142, 5551, 14226, 20450, 11586, 8476, 5323],
        "validation": [18362],
        "test": [2367],
    }
    assert sum(map(sum, sizes.values())) == 101_901
    again = piano.load_maestro(config())
    for split, pieces in maestro.splits.items():
        for piece, same in zip(pieces, again.pieces(split), strict=True):
            np.testing.assert_array_equal(piece, same)


@pytest.mark.slow
def test_maestro_round_trip(maestro, tmp_path):
    """A real performance, through events and a file."""
    notes = maestro.pieces("test")[0]
    events = maestro.encode(notes)
    assert len(events) == len(notes)
    path = epath.Path(tmp_path / "a.mid")
    midi.write_notes(path, midi.decode(events))
    np.testing.assert_array_equal(midi.encode(midi.read_notes(path)), events)


def test_cached_arrays(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    calls = []

    def make():
        calls.append(1)
        return [np.zeros(3, midi.NOTE), np.arange(5)]

    for _ in range(2):
        first, second = cached_arrays("a-1.npz", make)
        assert first.dtype == midi.NOTE
        np.testing.assert_array_equal(second, np.arange(5))
    assert len(calls) == 1
    path = tmp_path / "cache" / "a-1.npz"
    for damage in (path.read_bytes()[:-30], b"", b"\0" * 100, path.read_bytes()[:60] + b"x" * 400):
        path.write_bytes(damage)
        cached_arrays("a-1.npz", make)
    assert len(calls) == 5
    assert [p.name for p in path.parent.iterdir()] == ["a-1.npz"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"a-1\.npz: cannot be written"):
        cached_arrays("a-1.npz", make)


def test_augmentation():
    rng = np.random.default_rng(0)
    notes = np.zeros(50, midi.NOTE)
    notes["onset"] = np.arange(50) * 0.5
    notes["duration"] = 0.3
    notes["pitch"] = rng.permutation(np.arange(21, 109))[:50]
    notes["velocity"] = 64
    before = notes.copy()
    shifts, velocities, pitches = [], [], []
    for _ in range(200):
        events = piano.augment(notes, rng)
        shifts.append(midi.TIME_GRID[events[:-1, 3]].mean() / 50)
        velocities.append(int(events[0, 1]) - 64)
        moved = events[:, 0] + 21 - notes["pitch"]
        assert len(set(moved % 12)) == 1  # all by the same interval, up to an octave
        inside = (notes["pitch"] > 30) & (notes["pitch"] < 100)
        pitches += set(moved[inside].tolist())
    np.testing.assert_array_equal(notes, before)
    assert 0.88 < min(shifts) < 0.92
    assert 1.08 < max(shifts) < 1.12
    assert (min(velocities), max(velocities)) == (-20, 20)
    assert set(pitches) == set(range(-6, 7))
    notes["velocity"] = 1
    assert (piano.augment(notes, rng)[:, 1] >= 1).all()


def test_folder(tmp_path):
    def fails(message, path=tmp_path):
        with pytest.raises(DataError, match=message) as raised:
            piano.load_folder(config(path)).pieces("train")
        assert "\n" not in str(raised.value)

    fails(r"config\.data\.path is empty: midi_folder needs a folder of MIDI files", "")
    fails(r"nowhere: no such file or folder", tmp_path / "nowhere")
    fails(r"at least three \.mid files, the folder has 0")
    notes = np.array([(0, 1, 60, 64), (1, 1, 62, 64)], midi.NOTE)
    (tmp_path / "deeper").mkdir()
    for name in ("b.mid", "deeper/a.MID", "c.midi"):
        midi.write_notes(epath.Path(tmp_path / name), notes)
        notes["pitch"] += 1
    corpus = piano.load_folder(config(tmp_path))
    firsts = {s: [int(p["pitch"][0]) for p in corpus.pieces(s)] for s in corpus.splits}
    assert firsts == {"test": [60], "validation": [62], "train": [61]}
    (tmp_path / "d.mid").write_bytes(b"MThd")
    fails(r"d\.mid: not a MIDI file, or damaged")
