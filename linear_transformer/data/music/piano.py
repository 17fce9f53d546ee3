"""Piano performances: ten pieces of MAESTRO, or a folder of MIDI files.

The ten pieces have 101,901 notes in 2.8 hours.  Their source is the tests of the Python package
`miditok` 3.1.0 (4.2 MB source archive, downloaded with pip and not installed).  Each piece belongs
to one split.
"""

import re
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.io import fetch
from linear_transformer.data.io.array_cache import cached_arrays
from linear_transformer.data.io.reading import data_files, existing_path, read_file
from linear_transformer.data.music import midi
from linear_transformer.data.music.note_pipeline import EventCorpus

LICENCE = "CC BY-NC-SA 4.0 (MAESTRO)"

_REQUIREMENT = "miditok==3.1.0"
_ARCHIVE = "miditok-3.1.0.tar.gz"
_SHA256 = "1f905b9be87a57dac28a86c1c7a7565674a5d2e57b2f650bc2fea97792f6bdef"
_PIECE = re.compile(r"/tests/MIDIs_one_track/Maestro_(\d+)\.mid$")
_NUM_NOTES = (2367, 12418, 3142, 5551, 14226, 18362, 20450, 11586, 8476, 5323)
_CACHE = "maestro-10-notes-1.npz"  # increase the number when the reader changes

_MAX_DILATION = 0.1
_MAX_VELOCITY_SHIFT = 20
_MAX_TRANSPOSITION = 6


def load_maestro(config: Any) -> EventCorpus:
    """Makes the corpus of ten pieces, fetched at their first use; `config` is not used.

    Reading its pieces raises:
      FetchError: the archive is not cached and cannot be downloaded.
      DataError: the archive has other contents.
    """
    del config
    return corpus_of("maestro10", LICENCE, lambda: cached_arrays(_CACHE, _read_archive))


def load_folder(config: Any) -> EventCorpus:
    """Makes a corpus of all .mid and .midi files below `config.path`, sorted by path.

    Files with the same content, or reached by several links, are one piece.  Names that begin with
    a dot are left out.

    Reading its pieces raises:
      DataError: the folder is missing, has fewer than three files, or a file can't be read.
    """

    def load() -> list[np.ndarray]:
        folder = existing_path(config.path, "midi_folder", "a folder of MIDI files")
        paths = sorted(
            path for path in data_files(folder) if path.suffix.lower() in (".mid", ".midi")
        )
        names: dict[bytes, str] = {}
        for path in paths:
            names.setdefault(read_file(path), str(path))
        if len(names) < 3:
            raise DataError(
                f"config.data.path = {config.path}: three splits need at least three .mid files, "
                f"the folder has {len(names)}"
            )
        return [midi.parse_notes(data, name) for data, name in names.items()]

    return corpus_of("midi_folder", "unknown", load)


def augment(notes: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, "N 4"]:
    """Converts notes to events after random time dilation, velocity shift and transposition.

    Notes beyond the keyboard are moved back by an octave.
    """
    notes = notes.copy()
    dilation = rng.uniform(1 - _MAX_DILATION, 1 + _MAX_DILATION)
    notes["onset"] *= dilation
    notes["duration"] *= dilation
    shift = rng.integers(-_MAX_VELOCITY_SHIFT, _MAX_VELOCITY_SHIFT, endpoint=True)
    notes["velocity"] = np.clip(notes["velocity"] + shift, 1, 127)
    transposition = rng.integers(-_MAX_TRANSPOSITION, _MAX_TRANSPOSITION, endpoint=True)
    pitch = notes["pitch"] + transposition
    pitch = np.where(pitch < midi.LOWEST_PITCH, pitch + 12, pitch)
    notes["pitch"] = np.where(pitch > midi.HIGHEST_PITCH, pitch - 12, pitch)
    return midi.encode(notes)


def corpus_of(name: str, licence: str, load: Callable[[], list[np.ndarray]]) -> EventCorpus:
    """Makes a corpus of pieces that are arrays of dtype `midi.NOTE`."""
    return EventCorpus(
        name=name,
        licence=licence,
        channels=midi.CHANNELS,
        num_values=midi.NUM_VALUES,
        time_shift=midi.TIME_GRID,
        load=load,
        encode=midi.encode,
        augment=augment,
    )


def _read_archive() -> list[np.ndarray]:
    path = fetch.fetch_package(_REQUIREMENT, _ARCHIVE, _SHA256)
    pieces = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if found := _PIECE.search(member.name):
                data = fetch.read_member(archive, member)
                pieces[int(found[1])] = midi.parse_notes(data, f"{path}: {member.name}")
    notes = tuple(pieces[number].size for number in sorted(pieces))
    if notes != _NUM_NOTES:
        raise DataError(
            f"{path}: expected pieces of {_NUM_NOTES} notes, got {notes}; "
            "delete it to fetch it again"
        )
    return [pieces[number] for number in sorted(pieces)]
