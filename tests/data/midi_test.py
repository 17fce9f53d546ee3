"""The structured MIDI encoding: the grid, the pedal, the round trip, and files that are no MIDI."""

import io
import sys

import mido
import numpy as np
import pytest
from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.music import midi

NAME = "x.mid"


def content(*messages, ticks_per_beat=500, tracks=()):
    """A MIDI file of (kind, ticks from the one before, values) with 1000 ticks a second."""
    file = mido.MidiFile(ticks_per_beat=ticks_per_beat)
    for part in (messages, *tracks):
        track = file.add_track()
        for kind, time, *values in part:
            if kind == "tempo":
                track.append(mido.MetaMessage("set_tempo", tempo=values[0], time=time))
            elif kind == "pedal":
                message = mido.Message("control_change", control=64, value=values[0], time=time)
                track.append(message)
            else:
                note, velocity = (values[0], values[1]) if len(values) > 1 else (values[0], 64)
                channel = values[2] if len(values) > 2 else 0
                track.append(
                    mido.Message(kind, note=note, velocity=velocity, time=time, channel=channel)
                )
    data = io.BytesIO()
    file.save(file=data)
    return data.getvalue()


def rows(data):
    """(onset, duration, pitch, velocity) of each note, in milliseconds."""
    notes = midi.parse_notes(data, NAME)
    return [
        (round(1000 * n["onset"]), round(1000 * n["duration"]), int(n["pitch"]), int(n["velocity"]))
        for n in notes
    ]


def random_notes(rng, count=300):
    """Chords, long pauses, overlapping repetitions and notes at the keyboard's ends."""
    notes = np.zeros(count, midi.NOTE)
    gaps = rng.choice(
        [0, 0.004, 0.013, 0.2, 0.99, 3.33, 30], count, p=[0.3, 0.1, 0.1, 0.4, *[0.04, 0.05, 0.01]]
    )
    notes["onset"] = 1.234 + np.cumsum(gaps * rng.uniform(0.5, 1, count))
    notes["duration"] = rng.exponential(0.8, count)
    notes["pitch"] = rng.choice([21, 40, 41, 60, 61, 62, 108], count)
    notes["velocity"] = rng.integers(1, 128, count)
    return notes


def test_grid():
    """Section "sizes" of the released code: 50 + 40 + 15 values, and no duration 0."""
    assert midi.NUM_VALUES == (88, 128, 104, 105)
    steps = np.diff(midi.TIME_GRID)
    assert midi.TIME_GRID[0] == 0
    assert midi.TIME_GRID[-1] == 1900
    assert [int(np.sum(steps == s)) for s in (2, 10, 100)] == [50, 40, 14]


def test_notes_of_a_file():
    data = content(
        ("note_on", 100, 60, 80),
        ("note_on", 0, 64, 81),
        ("note_off", 300, 60),
        ("note_on", 50, 64, 0),  # velocity 0 is a release
        ("note_on", 10, 36, 90, 9),  # drums
        ("note_on", 0, 20, 90),  # below the keyboard
    )
    assert rows(data) == [(100, 300, 60, 80), (100, 350, 64, 81)]


def test_tracks_and_tempo():
    """The tempo of one track is that of all; half of it doubles what follows."""
    data = content(
        ("tempo", 1000, 1_000_000),
        tracks=[[("note_on", 500, 60), ("note_off", 1000, 60)], [("note_on", 1000, 50)]],
    )
    assert rows(data) == [(500, 1500, 60, 64), (1000, 1000, 50, 64)]


def test_pedal():
    """A released key sounds until the pedal goes up; a key that is still down goes on."""
    data = content(
        ("pedal", 0, 127),
        ("note_on", 100, 60),
        ("note_off", 100, 60),
        ("note_on", 100, 62),
        ("pedal", 100, 64),  # still down
        ("pedal", 100, 63),
        ("note_off", 100, 62),
        ("note_on", 0, 65),
        ("note_off", 10, 65),
    )
    assert rows(data) == [(100, 400, 60, 64), (300, 300, 62, 64), (600, 10, 65, 64)]


def test_pedal_and_repetition():
    """A string that is struck again ends its note, and what nobody ends lasts to the end."""
    data = content(
        ("pedal", 0, 127),
        ("note_on", 0, 60),
        ("note_off", 100, 60),
        ("note_on", 400, 60),
        ("note_off", 100, 60),
        ("note_on", 0, 70),
        ("pedal", 400, 100),
    )
    assert rows(data) == [(0, 500, 60, 64), (500, 500, 60, 64), (600, 400, 70, 64)]


@pytest.mark.parametrize("seed", range(8))
def test_round_trip(tmp_path, seed):
    """Events, notes, file, notes, events: the same again, and so on for what a model may write."""
    events = midi.encode(random_notes(np.random.default_rng(seed)))
    assert (events >= 0).all()
    assert (events < midi.NUM_VALUES).all()
    np.testing.assert_array_equal(midi.encode(midi.decode(events)), events)
    path = epath.Path(tmp_path / "a.mid")
    midi.write_notes(path, midi.decode(events, start=2.5))
    notes = midi.read_notes(path)
    assert notes["onset"][0] == pytest.approx(2.5)
    np.testing.assert_array_equal(midi.encode(notes), events)

    rng = np.random.default_rng(seed)
    written = np.stack([rng.integers(size, size=200) for size in midi.NUM_VALUES], axis=-1)
    midi.write_notes(path, midi.decode(written))
    events = midi.encode(midi.read_notes(path))
    midi.write_notes(path, midi.decode(events))
    np.testing.assert_array_equal(midi.encode(midi.read_notes(path)), events)


def test_quantisation_error():
    """Short time shifts do not drift: after a thousand, an onset is still within half a step."""
    rng = np.random.default_rng(0)
    notes = np.zeros(1000, midi.NOTE)
    notes["onset"] = np.cumsum(rng.uniform(0.03, 0.3, 1000))
    notes["onset"] -= notes["onset"][0]
    notes["duration"] = rng.uniform(0.02, 19, 1000)
    notes["pitch"] = 21 + np.arange(1000) % 88
    notes["velocity"] = 1 + np.arange(1000) % 127
    events = midi.encode(notes)
    decoded = midi.decode(events)
    assert np.abs(decoded["onset"] - notes["onset"]).max() < 0.0101
    for name in ("pitch", "velocity"):
        np.testing.assert_array_equal(decoded[name], notes[name])
    # Half a step of the grid, but where the pitch is struck again before.
    again = np.append(notes["onset"][88:] - notes["onset"][:-88], [np.inf] * 88)
    free = notes["duration"] < again - 0.5
    error = np.abs(decoded["duration"] - notes["duration"])
    step = np.select([notes["duration"] < 0.99, notes["duration"] < 4.95], [0.02, 0.1], 1.0)
    assert (error <= step / 2 + 1e-9)[free].all()
    assert free.sum() > 200


def test_simultaneous_notes_of_one_pitch():
    """Two keys can't be one key: the longer note stays."""
    notes = np.array([(0, 0.1, 60, 50), (0, 0.5, 60, 70), (0, 0.3, 50, 60)], midi.NOTE)
    np.testing.assert_array_equal(midi.encode(notes), [[29, 60, 14, 0], [39, 70, 24, 0]])
    assert midi.encode(notes[:0]).shape == (0, 4)


def one_line(data):
    """The message that `data` is refused with, or None if it is taken."""
    try:
        midi.parse_notes(data, NAME)
    except DataError as error:
        assert str(error).startswith(NAME)
        assert "\n" not in str(error)
        return str(error)
    return None


def test_bad_content():
    good = content(("note_on", 0, 60), ("note_off", 100, 60), ("pedal", 3, 100))
    assert one_line(good) is None
    for size in range(1, len(good)):
        assert "not a MIDI file, or damaged" in one_line(good[:size])
    assert "not a MIDI file" in one_line(b"RIFF and no MIDI at all, but long enough")
    assert "SMPTE" in one_line(good[:12] + b"\xe7\x28" + good[14:])
    assert "no notes between A0 and C8" in one_line(content(("pedal", 0, 127)))
    assert "type 2" in one_line(good[:9] + b"\x02" + good[10:])


def test_random_damage():
    """Whatever is flipped, the answer is notes or one line."""
    rng = np.random.default_rng(0)
    good = content(
        ("tempo", 0, 400_000),
        *[(kind, 30, 60 + i) for i in range(12) for kind in ("note_on", "note_off")],
    )
    for _ in range(200):
        data = np.frombuffer(good, np.uint8).copy()
        places = rng.integers(len(data), size=rng.integers(1, 4))
        data[places] = rng.integers(256, size=places.size)
        one_line(data.tobytes())


def test_without_mido(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mido", None)
    message = r"^MIDI files need mido: pip install -r requirements\.txt$"
    with pytest.raises(DataError, match=message):
        midi.parse_notes(b"MThd", NAME)
    with pytest.raises(DataError, match=message):
        midi.write_notes(epath.Path(tmp_path / "a.mid"), np.zeros(1, midi.NOTE))


def test_files(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.mid: cannot be read"):
        midi.read_notes(epath.Path(tmp_path / "nowhere.mid"))
    (tmp_path / "empty.mid").touch()
    with pytest.raises(DataError, match=r"empty\.mid: the file is empty"):
        midi.read_notes(epath.Path(tmp_path / "empty.mid"))
    with pytest.raises(DataError, match=r"nowhere/a\.mid: cannot be written"):
        midi.write_notes(epath.Path(tmp_path / "nowhere" / "a.mid"), np.zeros(1, midi.NOTE))
