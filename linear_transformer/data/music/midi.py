"""Structured MIDI encoding and decoding: a piano performance with four tokens per note.

Hadjeres and Crestel 2021 (The Piano Inpainting Application, arXiv:2107.05944).  The tokens of a
note are pitch, velocity, duration and time shift (the time to the next onset, 0 in a chord), in
this order.  The grid of times is finer for short times, like hearing: steps of 0.02 s up to 1 s, of
0.1 s up to 5 s and of 1 s up to 19 s.  The sustain pedal is merged into the durations.

Notes in seconds are structured arrays of dtype NOTE, sorted by onset; events are integers of shape
(N, 4).  `encode` is idempotent: encoding a file that `write_notes` wrote from decoded events
returns the same events.
"""

import io
import types

import numpy as np
from etils import epath
from jaxtyping import Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.reading import read_file

NOTE = np.dtype([("onset", "f8"), ("duration", "f8"), ("pitch", "i4"), ("velocity", "i4")])
CHANNELS = ("pitch", "velocity", "duration", "time_shift")

LOWEST_PITCH, HIGHEST_PITCH = 21, 108
# In hundredths of a second.  No note has the first value, 0, as its duration.
TIME_GRID = np.concatenate(
    [np.arange(0, 100, 2), np.arange(100, 500, 10), np.arange(500, 2000, 100)]
)
NUM_VALUES = (HIGHEST_PITCH - LOWEST_PITCH + 1, 128, TIME_GRID.size - 1, TIME_GRID.size)

_STEP = 2  # finest step of the grid, in hundredths of a second
_TICKS_PER_SECOND = 1000
_SUSTAIN = 64
_DRUMS = 9  # index of the tenth channel
_DAMAGED = (OSError, EOFError, ValueError, TypeError, LookupError)


def read_notes(path: epath.Path) -> np.ndarray:
    """Reads the notes of all tracks and channels except the drums, with the pedal merged.

    A note ends when its key, or later the pedal, is released, or when its pitch is struck again.

    Returns:
      Notes of dtype NOTE, shape (N,), sorted by onset.

    Raises:
      DataError: the file can't be read, is not a MIDI file, is damaged, or has no piano notes; or
        mido is not installed.
    """
    return parse_notes(read_file(path), str(path))


def parse_notes(data: bytes, name: str) -> np.ndarray:
    """Parses the content of a file; `name` is for messages; see `read_notes`."""
    mido = _mido()
    try:
        file = mido.MidiFile(file=io.BytesIO(data), clip=True)
        if file.ticks_per_beat <= 0:
            raise ValueError("SMPTE time is not supported")
        messages = list(file)
    except (*_DAMAGED, mido.KeySignatureError) as error:
        reason = " ".join(str(error).split()) or "it ends too early"
        raise DataError(f"{name}: not a MIDI file, or damaged ({reason})") from error
    notes = np.array(_sounding(messages), NOTE)
    notes = notes[(notes["pitch"] >= LOWEST_PITCH) & (notes["pitch"] <= HIGHEST_PITCH)]
    if not notes.size:
        raise DataError(f"{name}: the file has no notes between A0 and C8")
    return notes[np.lexsort((notes["pitch"], notes["onset"]))]


def _mido() -> types.ModuleType:
    """Imports and returns the module mido, which training on text does not need."""
    try:
        import mido
    except ImportError as error:
        raise DataError("MIDI files need mido: pip install -r requirements.txt") from error
    return mido


def _sounding(messages: list) -> list[tuple[float, float, int, int]]:
    """Converts messages, timed in seconds since the previous message, to notes."""
    notes = []
    sounding: dict[tuple[int, int], list] = {}  # onset, velocity, whether the key is pressed
    pedal = set()
    now = 0.0

    def end(key: tuple[int, int]) -> None:
        onset, velocity, _ = sounding.pop(key)
        notes.append((onset, now - onset, key[1], velocity))

    for message in messages:
        now += message.time
        if message.type in ("note_on", "note_off") and message.channel != _DRUMS:
            key = (message.channel, message.note)
            if message.type == "note_on" and message.velocity:
                if key in sounding:
                    end(key)
                sounding[key] = [now, message.velocity, True]
            elif key in sounding and message.channel in pedal:
                sounding[key][2] = False
            elif key in sounding:
                end(key)
        elif message.type == "control_change" and message.control == _SUSTAIN:
            if message.value >= 64:
                pedal.add(message.channel)
            elif message.channel in pedal:
                pedal.remove(message.channel)
                released = [k for k, (_, _, down) in sounding.items() if not down]
                for key in released:
                    if key[0] == message.channel:
                        end(key)
    for key in list(sounding):
        end(key)
    return notes


def write_notes(path: epath.Path, notes: np.ndarray) -> None:
    """Writes a MIDI file of one track, in ticks of a millisecond.

    A note ends when its pitch is struck again.

    Args:
      path: file to write.
      notes: array of dtype NOTE, shape (N,).

    Raises:
      DataError: the file can't be written, or mido is not installed.
    """
    mido = _mido()
    on = np.rint(notes["onset"] * _TICKS_PER_SECOND).astype(np.int64)
    off = np.rint((notes["onset"] + notes["duration"]) * _TICKS_PER_SECOND).astype(np.int64)
    order = np.lexsort((off, on, notes["pitch"]))
    on, off, pitch = on[order], off[order], notes["pitch"][order]
    velocity = np.clip(notes["velocity"][order], 1, 127)  # velocity 0 means a release
    again = pitch[1:] == pitch[:-1]
    off[:-1] = np.where(again, np.minimum(off[:-1], on[1:]), off[:-1])
    struck = off > on
    events = [(t, 0, p, 0) for t, p in zip(off[struck], pitch[struck], strict=True)]
    events += [
        (t, 1, p, v) for t, p, v in zip(on[struck], pitch[struck], velocity[struck], strict=True)
    ]
    file = mido.MidiFile(type=0, ticks_per_beat=_TICKS_PER_SECOND // 2)
    track = file.add_track()
    track.append(mido.MetaMessage("set_tempo", tempo=500_000))
    now = 0
    for time, is_on, pitch, velocity in sorted(events):  # at the same time, releases come first
        kind = "note_on" if is_on else "note_off"
        delta = int(time - now)
        track.append(mido.Message(kind, note=int(pitch), velocity=int(velocity), time=delta))
        now = time
    data = io.BytesIO()
    file.save(file=data)
    try:
        path.write_bytes(data.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def encode(notes: np.ndarray) -> Int[np.ndarray, "N 4"]:
    """Quantises notes to events, in order of onset and pitch.

    Onsets are rounded to 0.02 s before their differences are computed, so that rounding errors of
    many short time shifts do not add up.  Of notes with the same onset and pitch, the longest is
    kept; a duration is cut when the same pitch is struck again.  The last time shift is 0.  Time
    before the first onset is not encoded.

    Args:
      notes: array of dtype NOTE, shape (N,), pitches 21 to 108.
    """
    onset = np.rint(notes["onset"] * (100 / _STEP)).astype(np.int64) * _STEP
    order = np.lexsort((-notes["duration"], notes["pitch"], onset))
    notes, onset = notes[order], onset[order]
    first = np.ones(notes.size, bool)
    first[1:] = (np.diff(onset) > 0) | (np.diff(notes["pitch"]) != 0)
    notes, onset = notes[first], onset[first]

    shift = _nearest(np.diff(onset, append=onset[-1:]), TIME_GRID)
    onset = np.cumsum(TIME_GRID[shift]) - TIME_GRID[shift]
    duration = _nearest(notes["duration"] * 100, TIME_GRID[1:])
    by_pitch = np.lexsort((onset, notes["pitch"]))
    again = np.diff(notes["pitch"][by_pitch]) == 0
    gap = np.diff(onset[by_pitch])
    longest = np.searchsorted(TIME_GRID[1:], gap[again], side="right") - 1
    struck_again = by_pitch[:-1][again]
    duration[struck_again] = np.minimum(duration[struck_again], longest)

    columns = [notes["pitch"] - LOWEST_PITCH, np.clip(notes["velocity"], 1, 127), duration, shift]
    return np.stack(columns, axis=-1).astype(np.int32)


def time_shift(seconds: float) -> int:
    """Returns the index of the time shift that is nearest to a time in seconds."""
    return int(_nearest(np.array([100 * seconds]), TIME_GRID)[0])


def _nearest(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Returns the index of the grid value that is nearest to each value."""
    return np.searchsorted((grid[1:] + grid[:-1]) / 2, values)


def decode(events: Int[np.ndarray, "N 4"], start: float = 0.0) -> np.ndarray:
    """Converts events to notes of dtype NOTE, (N,); the first onset is `start` seconds."""
    shift = TIME_GRID[events[:, 3]]
    notes = np.empty(len(events), NOTE)
    notes["onset"] = start + (np.cumsum(shift) - shift) / 100
    notes["duration"] = TIME_GRID[1:][events[:, 2]] / 100
    notes["pitch"] = events[:, 0] + LOWEST_PITCH
    notes["velocity"] = events[:, 1]
    return notes
