"""Bach's four-part chorales: 351 pieces, 75,044 sixteenth notes of soprano, alto, tenor and bass.

Source: the corpus of the Python package `music21` 10.5.0 (20 MB wheel).  The package must be
installed, because it reads its own format: pip install -r requirements-music.txt.  The whole data
set is read once, in about half a minute, and cached as arrays.  Each piece belongs to one split.
"""

import importlib.util
from typing import Any

import numpy as np
from jaxtyping import Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.array_cache import cached_arrays
from linear_transformer.data.music.note_pipeline import EventCorpus

LICENCE = "public domain music; encodings by their own terms (package: BSD-3-Clause)"
CHANNELS = ("soprano", "alto", "tenor", "bass")
LOWEST_PITCH, HIGHEST_PITCH = 36, 81
NUM_VALUES = (HIGHEST_PITCH - LOWEST_PITCH + 2,) * 4  # value 0 is a rest

_STEP = 0.25  # quarter notes
_NUM_PIECES, _NUM_STEPS = 351, 75_044
_CACHE = "bach-chorales-2.npz"  # increase the number when the reader changes
_MAX_TRANSPOSITION = 6


def load(config: Any) -> EventCorpus:
    """Makes the corpus of chorales; `config` is not used.

    Reading its pieces raises:
      DataError: the chorales are not cached, and music21 is missing or has another version.
    """
    del config
    return EventCorpus(
        name="chorales",
        licence=LICENCE,
        channels=CHANNELS,
        num_values=NUM_VALUES,
        time_shift=None,
        load=lambda: cached_arrays(_CACHE, _read_music21),
        encode=encode,
        augment=augment,
    )


def encode(pitches: np.ndarray) -> Int[np.ndarray, "N 4"]:
    """Encodes MIDI pitches (N, 4): 0 for a rest, 1 for pitch 36 (C2), 2 for pitch 37, ..."""
    return np.where(pitches > 0, pitches - LOWEST_PITCH + 1, 0).astype(np.int32)


def augment(pitches: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, "N 4"]:
    """Transposes all voices by a random interval, within the range of the chorales."""
    sounding = pitches[pitches > 0]
    low, high = -_MAX_TRANSPOSITION, _MAX_TRANSPOSITION
    if sounding.size:
        low = max(low, LOWEST_PITCH - int(sounding.min()))
        high = min(high, HIGHEST_PITCH - int(sounding.max()))
    shift = rng.integers(low, high, endpoint=True)
    return encode(np.where(pitches > 0, pitches + shift, 0))


def _read_music21() -> list[np.ndarray]:
    if importlib.util.find_spec("music21") is None:
        raise DataError(
            'config.data.dataset = "chorales" needs music21: pip install -r requirements-music.txt'
        )
    from music21 import corpus  # pyright: ignore[reportMissingImports] - of requirements-music.txt

    pieces = []
    for name in corpus.chorales.Iterator(returnType="filename"):
        score = corpus.parse(name)
        if len(score.parts) == len(CHANNELS):
            pieces.append(_grid(score))
    steps = sum(map(len, pieces))
    if (len(pieces), steps) != (_NUM_PIECES, _NUM_STEPS):
        raise DataError(
            f"music21: expected {_NUM_PIECES} chorales of {_NUM_STEPS} steps, got {len(pieces)} of "
            f"{steps}; install the version in requirements-music.txt"
        )
    return pieces


def _grid(score: Any) -> np.ndarray:
    """Returns the MIDI pitch of each voice at each sixteenth note, (N, 4) int16; 0 is a rest."""
    grid = np.zeros((round(score.highestTime / _STEP), len(CHANNELS)), np.int16)
    for voice, part in enumerate(score.parts):
        for note in part.flatten().notes:
            start = round(note.offset / _STEP)
            stop = round((note.offset + note.quarterLength) / _STEP)
            grid[start:stop, voice] = max(pitch.midi for pitch in note.pitches)
    return grid
