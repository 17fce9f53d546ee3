"""Keys of an experiment's config: types, defaults and meanings.

`resolve` adds every key that a config does not list and computes the values that follow from other
keys; a mistake raises an error with a one-line message.  Nothing is read, allocated or compiled.
"""

import dataclasses
import inspect
import shlex
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import ml_collections

from linear_transformer.config import configuration, schema
from linear_transformer.config.schema import COUNT, FRACTION, NOT_NEGATIVE, SEED, Range
from linear_transformer.data.settings import (
    DataConfig,
    ImageData,
    LabelledData,
    LanguageModelData,
    RowData,
    SpeechData,
    SyntheticData,
    TextData,
)
from linear_transformer.data.synthetic.generators import GENERATORS
from linear_transformer.errors import ConfigError
from linear_transformer.models.aligned_encoder_decoder import AlignedEncoderDecoderConfig
from linear_transformer.models.classifier import ClassifierConfig
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.models.resnet import ResNetConfig
from linear_transformer.models.speech_recognizer import ENCODERS, TransformerConfig
from linear_transformer.nn.mixers.registry import MIXERS, mixer_options, option_meanings
from linear_transformer.sharding.mesh import MeshConfig
from linear_transformer.training.optimizers import (
    OptimizerConfig,
    find_optimizer,
    optimizer_options,
    option_type,
)
from linear_transformer.training.stop_condition import StopCondition


class Kind(NamedTuple):
    """Config dataclasses of the sections "data" and "model" of a task."""

    data: type[DataConfig]
    model: type


TASKS = {
    "language_modelling": Kind(LanguageModelData, LanguageModelConfig),
    "masked_language_modelling": Kind(TextData, LanguageModelConfig),
    "inpainting": Kind(RowData, AlignedEncoderDecoderConfig),
    "synthetic": Kind(SyntheticData, LanguageModelConfig),
    "image_generation": Kind(RowData, LanguageModelConfig),
    "image_classification": Kind(ImageData, ResNetConfig),
    "sequence_classification": Kind(LabelledData, ClassifierConfig),
    "speech_recognition": Kind(SpeechData, TransformerConfig),
}
# Keys that a single task uses.
_OF_TASK = {
    "label_smoothing": "language_modelling",
    "mask_rate": "masked_language_modelling",
    "encoder": "speech_recognition",
    "beam_width": "speech_recognition",
}
_SECTIONS = ("data", "model", "optimizer", "mesh")
# Keys whose values may follow from other keys.
FOLLOWING = (
    *("model.feed_forward_width", "model.max_positions", "model.pooling", "model.positions"),
    *("model.scan_layers", "optimizer.warmup_steps"),
)
_SCALARS = (bool, int, float, str, types.NoneType)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Keys of an experiment.

    Attributes:
      task: kind of experiment.
      seed: seed of the parameters, of the order of the data and of dropout.
      num_steps: number of updates of the parameters.
      log_every: steps between two lines of metrics.
      eval_every: steps between two evaluations; None is a tenth of num_steps.
      eval_batches: number of batches in an evaluation during training.
      checkpoint_every: steps between two checkpoints; None is eval_every.
      keep_checkpoints: number of checkpoints to keep, the newest ones.
      stop_when: condition on a metric of an evaluation during training at which the run is complete
        before num_steps, such as "accuracy >= 0.99" or "loss <= 0.1"; empty for none.
      final_evaluation: whether to evaluate the whole validation split at the end.
      sample: whether to print a sample of the model's output at the end.
      accumulate_steps: number of parts of a batch, processed one after the other.
      ema_decay: decay of the moving average of the parameters that is evaluated; 0 for none.
      label_smoothing: share of the target's probability that is spread over the vocabulary.
      mask_rate: share of the tokens that a masked language model predicts.
      encoder: encoder that `model` describes in speech recognition.
      beam_width: prefixes in the beam search of speech recognition; 0 takes the best path.
      data: the data; its keys depend on the task.
      model: the model; its keys depend on the task.
      optimizer: the optimizer and its schedule.
      mesh: number of devices along each axis.
    """

    task: str
    seed: int
    num_steps: int
    log_every: int
    eval_every: int | None
    eval_batches: int
    checkpoint_every: int | None
    keep_checkpoints: int
    final_evaluation: bool
    sample: bool
    accumulate_steps: int
    ema_decay: float
    stop_when: str = ""
    label_smoothing: float = 0.0
    mask_rate: float = 0.15
    encoder: str = "transformer"
    beam_width: int = 0
    data: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    mesh: dict[str, Any] = dataclasses.field(default_factory=dict)

    CHOICES: ClassVar[Mapping[str, Any]] = {"task": TASKS, "encoder": ENCODERS}
    RANGES: ClassVar[Mapping[str, Range]] = {
        "seed": SEED,
        **dict.fromkeys(
            (
                *("num_steps", "log_every", "eval_every", "eval_batches", "checkpoint_every"),
                *("keep_checkpoints", "accumulate_steps"),
            ),
            COUNT,
        ),
        **dict.fromkeys(("ema_decay", "label_smoothing"), FRACTION),
        "mask_rate": Range(above=0, below=1),
        "beam_width": NOT_NEGATIVE,
    }

    def __post_init__(self):
        schema.check(self, "")
        StopCondition(self.stop_when)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for key, task in _OF_TASK.items():
            value = getattr(self, key)
            if value != defaults[key] and self.task != task:
                raise ConfigError(
                    f"config.{key} is {value}; it is for config.task={task}, not {self.task}"
                )
        if self.eval_every is None:
            object.__setattr__(self, "eval_every", max(self.num_steps // 10, 1))
        if self.checkpoint_every is None:
            object.__setattr__(self, "checkpoint_every", self.eval_every)


def classes(config: Mapping[str, Any]) -> dict[str, type]:
    """Returns the config dataclass of each section of an experiment, by section name.

    Raises:
      ConfigError: the task or the encoder does not exist, or a section has no keys.
    """
    for name in _SECTIONS:
        if not isinstance(section := config.get(name, {}), Mapping):
            raise ConfigError(f"config.{name} is {section!r}; it must be a section with keys")
    task, encoder = config.get("task"), config.get("encoder", "transformer")
    schema.check_choice(task, TASKS, "config.task")
    schema.check_choice(encoder, ENCODERS, "config.encoder")
    data, model = TASKS[config["task"]]
    if task == "speech_recognition":
        model = ENCODERS[encoder]
    return {"data": data, "model": model, "optimizer": OptimizerConfig, "mesh": MeshConfig}


def resolve(config: Mapping[str, Any] | ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config with all its keys, and with the values that follow from other keys.

    Raises:
      ConfigError: a key is missing or unknown, or its value has a wrong type or is out of range;
        the message is one line that names the key.
    """
    values = configuration.plain(config)
    kinds = classes(values)
    top = configuration.build(ExperimentConfig, values, "")
    parts = {
        name: configuration.build(kinds[name], getattr(top, name), name)
        for name in ("data", "optimizer", "mesh")
    }
    data, optimizer = parts["data"], parts["optimizer"]
    given = _by_data(kinds["model"], data.longest)
    parts["model"] = configuration.build(kinds["model"], top.model, "model", **given)
    if data.batch_size % top.accumulate_steps:
        raise ConfigError(
            f"config.data.batch_size ({data.batch_size}) is not a multiple of "
            f"config.accumulate_steps ({top.accumulate_steps})"
        )
    resolved = {key: getattr(top, key) for key in schema.keys(ExperimentConfig)}
    for name, part in parts.items():
        resolved[name] = {key: getattr(part, key) for key in schema.keys(type(part))}
    resolved["optimizer"]["warmup_steps"] = optimizer.warmup(top.num_steps)
    if resolved["model"].get("positions", "learned") != "learned":
        resolved["model"]["max_positions"] = None  # only learned positions have a table
    return ml_collections.ConfigDict(resolved)


def _by_data(model: type, longest: int | None) -> dict[str, Any]:
    """Returns placeholders for the fields of a model's config that the data will set."""
    values = {
        "vocab_size": 2,
        "vocab_sizes": (2,),
        "num_classes": 2,
        "image_channels": 1,
        "length": longest,
    }
    names = {field.name for field in dataclasses.fields(model)} - schema.keys(model).keys()
    return {name: values[name] for name in names}


class Key(NamedTuple):
    """Key of a config.

    Attributes:
      hint: type of its value.
      default: default value; MISSING if a config must set the key.
      meaning: meaning of the key, in one line.
    """

    hint: Any
    default: Any
    meaning: str


def known_keys(config: Mapping[str, Any]) -> dict[str, Key]:
    """Returns all keys for this task, data set, optimizer and encoder, by dotted name."""
    found: dict[str, Key] = {}
    for section, cls in {"": ExperimentConfig, **classes(config)}.items():
        meanings = schema.meanings(cls)
        for name, field in schema.keys(cls).items():
            if section or name not in _SECTIONS:
                default = field.default
                if field.default_factory is not dataclasses.MISSING:
                    default = field.default_factory()
                meaning = meanings.get(name, "")
                if name in cls.CHOICES:
                    meaning += f" ({', '.join(cls.CHOICES[name])})"
                key = f"{section}.{name}" if section else name
                found[key] = Key(schema.hints(cls)[name], default, meaning)
    return found | dict(_options(config, MIXERS))


def _options(config: Mapping[str, Any], mixers: Iterable[str]) -> Iterator[tuple[str, Key]]:
    """Yields the keys of the options of optimizer, generator and `mixers`."""
    name = str(config.get("optimizer", {}).get("name", OptimizerConfig.name))
    meanings = schema.meanings(find_optimizer(name))
    for option, parameter in optimizer_options(name).items():
        yield (
            f"optimizer.options.{option}",
            Key(option_type(parameter), _default(parameter), meanings.get(option, "")),
        )
    make = GENERATORS.get(config.get("data", {}).get("dataset"))
    if config["task"] == "synthetic" and make is not None:
        meanings = schema.meanings(getattr(make, "func", make))
        for option, parameter in inspect.signature(make).parameters.items():
            yield (
                f"data.options.{option}",
                Key(parameter.annotation, _default(parameter), meanings.get(option, "")),
            )
    if "mixers" in schema.keys(classes(config)["model"]):
        for section in ("model.mixers", "model.mixers.parallel.branches"):
            for mixer in mixers:
                for option, key in _mixer_keys(mixer).items():
                    yield f"{section}.{mixer}.{option}", key


def _mixer_keys(mixer: str) -> dict[str, Key]:
    meanings = option_meanings(mixer)
    return {
        option: Key(parameter.annotation, _default(parameter), meanings.get(option, ""))
        for option, parameter in mixer_options(mixer).items()
    }


def _default(parameter: inspect.Parameter) -> Any:
    missing = parameter.default is inspect.Parameter.empty
    return dataclasses.MISSING if missing else parameter.default


def flat(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns all keys of an experiment with their values, by dotted name.

    Two configs are the same experiment if their flat dicts are equal: an option that a config
    leaves out has its default.
    """
    values = configuration.plain(resolve(config))
    found = configuration.flatten(values)
    for key, option in _options(values, values["model"].get("mixers", ())):
        if ".branches." not in key and isinstance(option.default, _SCALARS):
            found.setdefault(key, option.default)
    return {key: found[key] for key in sorted(found)}


def listing(config: Mapping[str, Any] | ml_collections.ConfigDict) -> list[str]:
    """Returns lines for the terminal: every key as a flag with its value and its meaning."""
    values = flat(config)
    raw = configuration.plain(config)
    keys, given = known_keys(raw), configuration.flatten(raw)
    lines = []
    for key, value in values.items():
        text = ",".join(value) if _is_names(value) else str(value)
        flag = f"--config.{key}={shlex.quote(text) if text else text}"
        follows = given.get(key, value) in (None, "auto") and value not in (None, "auto")
        note = "(follows) " if follows else ""
        meaning = keys[key].meaning if key in keys else ""
        lines.append(f"{flag:<54} {note}{meaning}".rstrip())
    return lines


def _is_names(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(x, str) for x in value)
