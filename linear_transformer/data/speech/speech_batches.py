"""Batches of utterances, padded to fixed numbers of frames and units."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Unpack

import grain
import numpy as np
from jaxtyping import Int

from linear_transformer.data.errors import DataError
from linear_transformer.data.labelled.labelled_batches import evaluation_batches, training_batches
from linear_transformer.data.share import Share
from linear_transformer.data.speech.filterbanks import NUM_FILTERS
from linear_transformer.data.speech.speech_units import BLANK, Ids, Units, load_units
from linear_transformer.data.speech.utterances import SpeechCorpus, Utterance, load_corpus
from linear_transformer.data.stream import Batch


class Example(NamedTuple):
    """Utterance with the ids of its transcript."""

    utterance: Utterance
    ids: Ids


class SpeechSource:
    """Source of labelled batches: the utterances of a corpus that fit into a row.

    Utterances are left out, and counted, if they have more frames or units than a row, more units
    than CTC can align with their frames, or a transcript that the units can't spell.  A label is
    the index of the utterance in its split.

    Args:
      corpus: the utterances.
      units: units of the transcripts.
      max_frames: frames T of a row.
      max_units: units U of a row.

    Raises:
      DataError: a size is not positive.
    """

    def __init__(self, corpus: SpeechCorpus, units: Units, max_frames: int, max_units: int):
        for key, value in (("max_frames", max_frames), ("max_units", max_units)):
            if value < 1:
                raise DataError(f"config.data.{key} = {value}: must be at least 1")
        self.corpus = corpus
        self.units = units
        self.max_frames = max_frames
        self.max_units = max_units
        self.num_threads = corpus.num_threads
        self._splits: dict[str, tuple[list[Example], int]] = {}

    def split(self, name: str) -> tuple[list[Example], Int[np.ndarray, " N"]]:
        """Returns the examples and their indices.

        Raises:
          DataError: the split is unknown, files are missing or broken, or no utterance fits.
        """
        examples, _ = self._load(name)
        return examples, np.arange(len(examples), dtype=np.int32)

    def left_out(self, name: str) -> int:
        """Returns the number of utterances of a split that are left out."""
        return self._load(name)[1]

    def read(self, example: Example) -> Batch:
        """Returns the padded arrays of one row.

        Raises:
          DataError: the file is broken.
        """
        frames = np.zeros((self.max_frames, NUM_FILTERS), np.float32)
        ids = np.full(self.max_units, BLANK, np.int32)
        features = example.utterance.read()
        frames[: len(features)] = features
        ids[: len(example.ids)] = example.ids
        return {
            "frames": frames,
            "num_frames": np.array(len(features), np.int32),
            "units": ids,
            "num_units": np.array(len(example.ids), np.int32),
        }

    def _load(self, name: str) -> tuple[list[Example], int]:
        if name not in self._splits:
            utterances = self.corpus.load(name)
            spelled = ((u, self.units.spell(u.transcript)) for u in utterances)
            fitting = [
                Example(u, ids) for u, ids in spelled if ids is not None and self._fits(u, ids)
            ]
            if not fitting:
                raise DataError(
                    f"{self.corpus.name}: none of the {len(utterances)} utterances of its "
                    f"{name} split has at most config.data.max_frames ({self.max_frames}) frames "
                    f"and config.data.max_units ({self.max_units}) {self.units.name}"
                )
            self._splits[name] = fitting, len(utterances) - len(fitting)
        return self._splits[name]

    def _fits(self, utterance: Utterance, ids: Ids) -> bool:
        if len(ids) > self.max_units:
            return False
        repeats = int(np.count_nonzero(ids[1:] == ids[:-1]))  # CTC separates repeats by a blank
        return len(ids) + repeats <= utterance.num_frames <= self.max_frames


def load_source(config: Any) -> SpeechSource:
    """Makes the source of `config.dataset` with `config.units` and the configured row sizes.

    Raises:
      DataError: a value is unknown or out of range.
    """
    corpus, units = load_corpus(config), load_units(config)
    return SpeechSource(corpus, units, config.max_frames, config.max_units)


def training_utterances(
    source: SpeechSource, *, seed: int, **share: Unpack[Share]
) -> grain.IterDataset:
    """Makes the endless dataset of utterances, shuffled anew every epoch.

    For any number of processes, the processes together see the same examples.

    Args:
      source: source of the utterances; its train split is read.
      seed: seed of the order, 0 to 2^32 - 1.
      **share: utterances of this process, see `data.share.Share`.

    Returns:
      A dataset whose iterator has `get_state` and `set_state` and yields `frames` (B, T, 40)
      float32 and `units` (B, U) int32, 0 after each utterance; `num_frames`, `num_units` and
      `labels`, (B,) int32; and `weights` (B,) float32, all 1.

    Raises:
      DataError: a value is out of range; on reading, a file is broken.
    """

    def read(example: Example, rng: np.random.Generator) -> Batch:
        del rng  # utterances have no random augmentation
        return source.read(example)

    return training_batches(source, read, seed=seed, **share)


def evaluation_utterances(
    source: SpeechSource, split: str, **share: Unpack[Share]
) -> Iterator[Batch]:
    """Yields every utterance of a split once; rows of weight 0 fill up the last batch.

    Args:
      source: source of the utterances.
      split: "train", "validation" or "test".
      **share: rows of this process, see `data.share.Share`.

    Raises:
      DataError: the split is unknown, a value is out of range, or a file is broken.
    """
    return evaluation_batches(source, split, source.read, **share)
