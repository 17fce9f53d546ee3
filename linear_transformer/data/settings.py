"""Keys of `config.data`, for each kind of data."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from linear_transformer.config import schema
from linear_transformer.config.schema import COUNT, COUNT_OR_0, NOT_NEGATIVE, POSITIVE, Range
from linear_transformer.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Keys of every data set.

    Attributes:
      dataset: name of the data set.
      batch_size: rows of a batch, over all processes.
    """

    dataset: str
    batch_size: int

    RANGES: ClassVar[Mapping[str, Range]] = {"batch_size": POSITIVE}
    CHOICES: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self):
        schema.check(self, "data")

    @property
    def longest(self) -> int | None:
        """Tokens of the longest row that a model sees; None if rows are not sequences."""
        return getattr(self, "sequence_length", None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowData(DataConfig):
    """Keys for rows of tokens from files.

    Attributes:
      path: file or folder of the data set; empty to download it.
      sequence_length: tokens of a row.
    """

    path: str = ""
    sequence_length: int

    RANGES: ClassVar[Mapping[str, Range]] = {
        **DataConfig.RANGES,
        "sequence_length": POSITIVE,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextData(RowData):
    """Keys for text of a language model.

    Attributes:
      tokenizer: "bytes", or the path of a tokenizer.json.
      packing: "contiguous" continues across the ends of documents, "packed" separates documents,
        "carried" gives each row consecutive windows and carries the model's state over them.
    """

    tokenizer: str = "bytes"
    packing: str = "contiguous"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelData(TextData):
    """Keys for text of a causal language model.

    Attributes:
      evaluation_lengths: further lengths of windows to evaluate.
    """

    evaluation_lengths: tuple[int, ...] = ()

    RANGES: ClassVar[Mapping[str, Range]] = {**RowData.RANGES, "evaluation_lengths": COUNT}

    @property
    def longest(self) -> int:
        return max(self.sequence_length, *self.evaluation_lengths, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledData(RowData):
    """Keys for labelled sequences.

    Attributes:
      sequence_length: tokens of a row; None is a whole image of pathfinder, side x side.
      difficulty: difficulty of the images of pathfinder: "easy", "intermediate" or "hard".
      side: side of the images of pathfinder, in pixels.
    """

    sequence_length: int | None = None
    difficulty: str = "hard"
    side: int | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {**RowData.RANGES, "side": POSITIVE}

    def __post_init__(self):
        super().__post_init__()
        if self.sequence_length is None:
            if self.side is None:
                raise ConfigError("config.data.sequence_length is missing")
            object.__setattr__(self, "sequence_length", self.side**2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData(DataConfig):
    """Keys for labelled images.

    Attributes:
      path: folder of the data set; empty to download it.
      flip: whether to mirror half of the images, left to right.
      padding: width of the black border that is added before a random crop to the image size.
      image_size: side, in pixels, to which the images of a folder are scaled.
    """

    path: str = ""
    flip: bool = False
    padding: int = 0
    image_size: int = 224

    RANGES: ClassVar[Mapping[str, Range]] = {
        **DataConfig.RANGES,
        "padding": NOT_NEGATIVE,
        "image_size": POSITIVE,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticData(DataConfig):
    """Keys for generated sequences.

    Attributes:
      options: arguments of the generator.
      sequence_length: tokens of a row in training.
      training_examples: number of different rows in training; 0 never repeats a row.
      evaluation_examples: number of rows of an evaluation.
      evaluation_lengths: further lengths to evaluate.
      evaluation_options: further evaluations, by option: {"pairs": ((length, pairs), ...)}.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    sequence_length: int
    training_examples: int = 0
    evaluation_examples: int
    evaluation_lengths: tuple[int, ...] = ()
    evaluation_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    RANGES: ClassVar[Mapping[str, Range]] = {
        **DataConfig.RANGES,
        "training_examples": COUNT_OR_0,
        **dict.fromkeys(("sequence_length", "evaluation_examples", "evaluation_lengths"), COUNT),
    }

    @property
    def longest(self) -> int:
        lengths = [self.sequence_length, *self.evaluation_lengths]
        for settings in self.evaluation_options.values():
            if isinstance(settings, tuple):  # the task raises an error for other values
                lengths += [s[0] for s in settings if isinstance(s, tuple) and _is_length(s[0])]
        return max(lengths)


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechData(DataConfig):
    """Keys for speech with transcripts.

    Attributes:
      path: folder of the data set; empty to download it.
      subsets: folders of each split.
      sample_rate: samples per second.
      units: units of the transcripts, "characters" or "phonemes".
      max_frames: frames of a row; longer utterances are left out.
      max_units: units of a row; longer transcripts are left out.
    """

    path: str = ""
    subsets: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sample_rate: int
    units: str = "characters"
    max_frames: int
    max_units: int

    RANGES: ClassVar[Mapping[str, Range]] = {
        **DataConfig.RANGES,
        **dict.fromkeys(("sample_rate", "max_frames", "max_units"), POSITIVE),
    }

    @property
    def longest(self) -> int:
        return self.max_frames
