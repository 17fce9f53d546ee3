"""The keys of `config.data`, for each kind of data."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from linear_transformer.config import schema
from linear_transformer.config.schema import NOT_NEGATIVE, POSITIVE, Range
from linear_transformer.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Keys of every data set.

    Attributes:
      dataset: name of the data set.
      batch_size: rows of a batch, of all processes together.
    """

    dataset: str
    batch_size: int

    RANGES: ClassVar[Mapping[str, Range]] = {"batch_size": POSITIVE}
    CHOICES: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self):
        schema.check(self, "data")

    @property
    def longest(self) -> int | None:
        """The longest row that a model sees, tokens; None where rows are no sequences."""
        return getattr(self, "sequence_length", None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowData(DataConfig):
    """Rows of tokens from files.

    Attributes:
      path: file or folder of the data set; empty where it can be downloaded.
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
    """Text for a language model.

    Attributes:
      tokenizer: "bytes", or the path of a tokenizer.json.
      packing: "contiguous" reads on over the ends of documents, "packed" keeps them apart.
    """

    tokenizer: str = "bytes"
    packing: str = "contiguous"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledData(RowData):
    """Labelled sequences.

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
    """Labelled images.

    Attributes:
      path: folder of the data set; empty where it can be downloaded.
      flip: whether half of the images are mirrored, left to right.
      padding: black pixels around an image, out of which one of its size is cut.
      image_size: pixels of a side that the images of a folder are scaled to.
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
    """Generated sequences.

    Attributes:
      options: arguments of the generator.
      sequence_length: tokens of a row in training.
      evaluation_examples: rows of an evaluation.
      evaluation_lengths: further lengths that are evaluated.
      evaluation_options: further evaluations, by option: {"pairs": ((length, pairs), ...)}.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    sequence_length: int
    evaluation_examples: int
    evaluation_lengths: tuple[int, ...] = ()
    evaluation_options: dict[str, Any] = dataclasses.field(default_factory=dict)

    RANGES: ClassVar[Mapping[str, Range]] = {
        **DataConfig.RANGES,
        "sequence_length": POSITIVE,
        "evaluation_examples": POSITIVE,
        "evaluation_lengths": POSITIVE,
    }

    @property
    def longest(self) -> int:
        lengths = [self.sequence_length, *self.evaluation_lengths]
        for settings in self.evaluation_options.values():
            if isinstance(settings, tuple):  # other values are refused by the task, with the key
                lengths += [s[0] for s in settings if isinstance(s, tuple) and _is_length(s[0])]
        return max(lengths)


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechData(DataConfig):
    """Speech with transcripts.

    Attributes:
      path: folder of the data set; empty where it can be downloaded.
      subsets: folders of each split.
      sample_rate: samples a second.
      units: what transcripts are written in, "characters" or "phonemes".
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
        "sample_rate": POSITIVE,
        "max_frames": POSITIVE,
        "max_units": POSITIVE,
    }

    @property
    def longest(self) -> int:
        return self.max_frames
