"""Utterances with transcripts: Asterisk's voice prompts, LibriSpeech, folders of Kaldi recipes.

`config.data.subsets` has the folders of LibriSpeech or of a Kaldi recipe for each split:

    {"train": ("train-clean-100",), "validation": ("dev-clean",), "test": ("test-clean",)}
    {"train": ("train_si284",), "validation": ("test_dev93",), "test": ("test_eval92",)}
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from linear_transformer.data.errors import DataError, lookup, without_path
from linear_transformer.data.io import fetch
from linear_transformer.data.io.array_cache import cached_arrays
from linear_transformer.data.io.reading import (
    decode_utf8,
    distinct,
    entries,
    existing_path,
    read_file,
    require_distinct,
)
from linear_transformer.data.speech import filterbanks
from linear_transformer.data.speech.filterbanks import Frames
from linear_transformer.data.speech.speech_units import normalize
from linear_transformer.data.text.corpus import SPLITS

_SUFFIXES = (".flac", ".wav")

_ASTERISK_RATE = 8_000
_ASTERISK_CACHE = "asterisk-en-filterbanks-1.npz"  # increase the number when features change
_ASTERISK_FOLDER = "/en_US_f_Allison/"
_ASTERISK_TEXTS = "./usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
_NOT_SPOKEN = re.compile(r"\[[^]]*\]|\([^)]*\)|<[^>]*>")
_DIGIT = re.compile(r"\b\d\b")
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_KEYS = {"*": " star ", "#": " pound "}


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Sound with its transcript.

    Attributes:
      name: name of the file, for messages.
      transcript: transcript as in the data set.
      num_frames: number of frames T.
      read: returns the frames, (T, 40); raises a DataError if the file is broken.
    """

    name: str
    transcript: str
    num_frames: int
    read: Callable[[], Frames]


@dataclasses.dataclass(frozen=True)
class SpeechCorpus:
    """Utterances by split: "train", "validation" and "test".

    Attributes:
      name, licence: name and licence of the data set.
      num_threads: threads for reading; 0 reads in the calling thread.
      load: lists the utterances of a split; raises a DataError if a file is broken.
    """

    name: str
    licence: str
    num_threads: int
    load: Callable[[str], list[Utterance]]


def load_corpus(config: Any) -> SpeechCorpus:
    """Makes the corpus that `config.dataset` names; its method `load` reads the files.

    Raises:
      DataError: the name is unknown, or the data set has another sample rate.
    """
    load = lookup(DATASETS, config.dataset, "config.data.dataset")
    if config.sample_rate < 1:
        raise DataError(f"config.data.sample_rate = {config.sample_rate}: must be positive")
    return load(config)


def _load_asterisk(config: Any) -> SpeechCorpus:
    """Loads voice prompts of the telephone system Asterisk: 568 clips, 25 minutes, 8 kHz.

    The source is the Debian packages `asterisk-core-sounds-en-wav` and `asterisk-core-sounds-en`
    1.6.1-1 (18 MB), which are not installed.  Clips without speech are left out.  A hash of the
    transcript selects the split (a tenth each for validation and test), so no transcript is in two
    splits, but many transcripts share most of their words.  All clips have the same speaker, so
    errors say little about other voices.
    """
    if config.sample_rate != _ASTERISK_RATE:
        raise DataError(
            f"config.data.sample_rate = {config.sample_rate}: asterisk has {_ASTERISK_RATE}"
        )
    return SpeechCorpus("asterisk", "CC BY-SA 3.0", 0, _asterisk_split)


def _asterisk_split(split: str) -> list[Utterance]:
    if split not in SPLITS:
        raise DataError(f'unknown split "{split}" of asterisk: use {", ".join(SPLITS)}')
    return [
        utterance
        for utterance in _asterisk_utterances()
        if _split_of(normalize(utterance.transcript)) == split
    ]


def _split_of(transcript: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(transcript.encode()).digest()[:8]) % 10
    return {0: "validation", 1: "test"}.get(tenth, "train")


def _asterisk_utterances() -> Iterator[Utterance]:
    names, lengths, frames = cached_arrays(_ASTERISK_CACHE, _asterisk_features)
    package = fetch.fetch_debian_package(
        "asterisk-core-sounds-en=1.6.1-1",
        "asterisk-core-sounds-en_1.6.1-1_all.deb",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    )
    with fetch.open_debian_data(package) as members:
        text = gzip.decompress(fetch.read_member(members, _ASTERISK_TEXTS)).decode()
    transcripts = prompts(text)
    starts = np.cumsum(lengths) - lengths
    for name, start, length in zip(names.tolist(), starts.tolist(), lengths.tolist(), strict=True):
        if transcripts[name]:
            part = frames[start : start + length]
            yield Utterance(name, transcripts[name], length, functools.partial(np.asarray, part))


def prompts(text: str) -> dict[str, str]:
    """Returns the spoken text of each clip: keys and digits as words, no [sounds] or (remarks).

    Args:
      text: lines of the form `name: transcript`.
    """
    said = {}
    for line in text.splitlines():
        name, colon, transcript = line.partition(":")
        if colon:
            transcript = _NOT_SPOKEN.sub(" ", transcript)
            for key, word in _KEYS.items():
                transcript = transcript.replace(key, word)
            transcript = _DIGIT.sub(lambda digit: _DIGITS[int(digit[0])], transcript)
            said[name.removesuffix(".wav")] = " ".join(transcript.split())
    return said


def _asterisk_features() -> list[np.ndarray]:
    """Computes names (N,), lengths (N,) and the concatenated frames of all clips."""
    package = fetch.fetch_debian_package(
        "asterisk-core-sounds-en-wav=1.6.1-1",
        "asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    )
    features = {}
    with fetch.open_debian_data(package) as members:
        for member in members:
            name = member.name.partition(_ASTERISK_FOLDER)[2]
            if name.endswith(".wav"):
                file = io.BytesIO(fetch.read_member(members, member))
                samples = filterbanks.read_samples(file, member.name, _ASTERISK_RATE)
                clip = filterbanks.log_mel(samples, _ASTERISK_RATE)
                features[name.removesuffix(".wav")] = clip
    names = sorted(features)
    lengths = np.array([len(features[name]) for name in names])
    return [np.array(names), lengths, np.concatenate([features[name] for name in names])]


def _load_librispeech(config: Any) -> SpeechCorpus:
    """Loads SUBSET/SPEAKER/CHAPTER/*.flac, or *.wav, and *.trans.txt (Panayotov et al. 2015)."""
    layout = "a folder of LibriSpeech: train-clean-100, ..."
    return _of_folders(config, "CC BY 4.0", layout, _librispeech_subset)


def _librispeech_subset(folder: epath.Path) -> Iterator[tuple[epath.Path, str]]:
    chapters = [chapter for speaker in _folders_of(folder) for chapter in _folders_of(speaker)]
    if not chapters:
        raise DataError(f"{folder}: no SPEAKER/CHAPTER folder in it")
    for chapter in chapters:
        files = entries(chapter)
        sounds = {path.stem: path for path in files if path.suffix in _SUFFIXES}
        texts = [path for path in files if path.name.endswith(".trans.txt")]
        if not sounds or len(texts) != 1:
            raise DataError(
                f"{chapter}: {len(sounds)} sounds ({', '.join(_SUFFIXES)}) and {len(texts)} "
                ".trans.txt; a chapter has sounds and one such file"
            )
        transcripts = _table(texts[0])
        if without := sounds.keys() - transcripts.keys():
            raise DataError(f"{sounds[min(without)]}: no transcript in {texts[0]}")
        for name, transcript in transcripts.items():
            if name not in sounds:
                raise DataError(f"{texts[0]}: no sound of {name} in the folder")
            yield sounds[name], transcript


def _load_kaldi(config: Any) -> SpeechCorpus:
    """Loads SUBSET/wav.scp and SUBSET/text: rows of an utterance's name and file or transcript.

    Relative paths are relative to `config.path`.  Commands (rows that end in "|") are not run:
    write the sounds to files first.  The fingerprint of the data has the files below `config.path`
    only, so a change of sounds elsewhere is not noticed.
    """
    layout = "the data folder of a Kaldi recipe: SUBSET/wav.scp and SUBSET/text"
    return _of_folders(config, "unknown", layout, _kaldi_subset)


def _kaldi_subset(folder: epath.Path) -> Iterator[tuple[epath.Path, str]]:
    table, text = folder / "wav.scp", folder / "text"
    sounds, transcripts = _table(table), _table(text)
    if not sounds:
        raise DataError(f"{table}: no utterance in it")
    for mine, other, them in ((sounds, transcripts, text), (transcripts, sounds, table)):
        if without := mine.keys() - other.keys():
            raise DataError(f"{them}: no row of {min(without)}")
    for name, file in sounds.items():
        if not file or file.endswith("|"):
            raise DataError(f"{table}: {name} has no file; commands are not run")
        yield folder.parent / file, transcripts[name]


def _of_folders(
    config: Any,
    licence: str,
    layout: str,
    list_subset: Callable[[epath.Path], Iterator[tuple[epath.Path, str]]],
) -> SpeechCorpus:
    """Makes a corpus of files; listing them reads only their headers."""

    def subset(folder: epath.Path, split: str) -> Iterator[tuple[epath.Path, str]]:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; config.data.subsets.{split} names it")
        return list_subset(folder)

    def load(split: str) -> list[Utterance]:
        if split not in config.subsets:
            raise DataError(
                f'config.data.subsets has no folders of the split "{split}": it has '
                f"{', '.join(config.subsets) or 'none'}"
            )
        folder = existing_path(config.path, config.dataset, layout)
        listed = {}
        for other, names in config.subsets.items():
            try:
                listed[other] = [pair for name in names for pair in subset(folder / name, other)]
            except DataError:  # the other splits are only compared with this one
                if other == split:
                    raise
        paths = {other: [path for path, _ in pairs] for other, pairs in listed.items()}
        require_distinct(paths, contents=False)  # clips of one length would all be read
        utterances = []
        for path, transcript in listed[split]:
            num_frames = filterbanks.frames_of_file(path, config.sample_rate)
            read = functools.partial(filterbanks.read_file, path, config.sample_rate)
            utterances.append(Utterance(str(path), transcript, num_frames, read))
        return utterances

    return SpeechCorpus(config.dataset, licence, 8, load)


def _folders_of(folder: epath.Path) -> list[epath.Path]:
    return distinct(path for path in entries(folder) if path.is_dir())


def _table(path: epath.Path) -> dict[str, str]:
    """Reads a table with rows of a name and the rest of the line."""
    rows = {}
    for line in decode_utf8(read_file(path), str(path)).splitlines():
        if line.strip():
            name, *rest = line.split(maxsplit=1)
            if name in rows:
                raise DataError(f"{path}: two rows of {name}")
            rows[name] = rest[0].strip() if rest else ""
    return rows


DATASETS: dict[str, Callable[[Any], SpeechCorpus]] = {
    "asterisk": without_path(_load_asterisk),
    "librispeech": _load_librispeech,
    "kaldi": _load_kaldi,
}
