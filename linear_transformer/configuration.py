"""Configs: from the command line, to and from a run's folder."""

import dataclasses
import json
import sys
import traceback
import types
import typing
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from linear_transformer import accelerators, distributed, run_folder, shipped_configs
from linear_transformer.errors import ConfigError, UserError

# What a resumed run may change: how long it goes on, what it reports and where, not what it
# computes.
RESUMABLE_KEYS = (
    "num_steps",
    "log_every",
    "eval_every",
    "eval_batches",
    "checkpoint_every",
    "keep_checkpoints",
    "final_evaluation",
    "sample",
    "mesh",
    "beam_width",
    "optimizer.schedule_steps",  # `training.folder` compares where schedules end
)


class RunError(Exception):
    """A run that can't go on although its config is right; one line, exit status 1."""


def run(main: Callable[[], None] | Callable[[ml_collections.ConfigDict, str], None], default=None):
    """Parses the flags and runs `main`; a user's mistake is one line and exit status 2.

    A RunError is one line too, and exit status 1.

    Args:
      main: called with the config and the value of --config if there is a `default`, else with
        nothing.
      default: config file of the --config flag.
    """
    accelerators.leave_out_absent_tpu()
    if default:
        shipped_configs.make_importable()
        default = shipped_configs.find(default)
        sys.argv[1:] = shipped_configs.find_in_arguments(sys.argv[1:])

    def parse(argv: list[str]) -> list[str]:
        try:
            return _parse(argv, default)
        except UserError as error:
            _fail(error)

    def guarded(_: list[str]) -> None:
        arguments = []
        if default:
            flag = flags.FLAGS["config"]
            arguments = [flag.value, config_flags.get_config_filename(flag)]
        try:
            main(*arguments)
        except UserError as error:
            _fail(error)
        except RunError as error:
            _fail(error, status=1)
        except Exception:
            if distributed.has_others():
                traceback.print_exc()
                _fail(RunError(distributed.FAREWELL), status=1)
            raise

    app.run(guarded, flags_parser=parse)


def _parse(argv: list[str], default: str | None) -> list[str]:
    try:
        if default:  # the definition reads sys.argv, so mistakes in --config show here
            config_flags.DEFINE_config_file(
                "config", default, "Experiment: a config file, with :variant if it has any."
            )
        rest = flags.FLAGS(argv)
        if default:
            flags.FLAGS["config"].value.keys()  # a file that is missing shows only on access
    except UserError:
        raise
    except flags.Error as error:
        raise ConfigError(_flag_error(argv, error)) from error
    except OSError as error:
        raise ConfigError(f"{_argument(argv, 'config')}: the file cannot be read") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(_name_key(argv, error)) from error
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if len(rest) > 1:
        raise ConfigError(f"unknown argument {rest[1]!r}; flags look like --name=value")
    return rest


def _fail(error: Exception, status: int = 2) -> typing.NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    if distributed.has_others():
        distributed.leave(status)
    sys.exit(status)


def _argument(argv: list[str], name: str) -> str:
    return next((a for a in argv if a.lstrip("-").startswith(f"{name}=")), f"--{name}")


def _flag_error(argv: list[str], error: flags.Error) -> str:
    """One line; of an error inside `get_config`, which comes as a traceback, its own message."""
    text = str(error).strip()
    if "Traceback (most recent call last)" not in text:
        return " ".join(text.split())
    kind, _, reason = text.splitlines()[-1].partition(": ")
    if kind.endswith((ConfigError.__name__, UserError.__name__)):
        return reason
    return f"{_argument(argv, 'config')}: {kind}: {reason}"


def _name_key(argv: list[str], error: Exception) -> str:
    """The override that ml_collections refused; its errors carry only the key's last part."""
    reason = str(error).strip().splitlines()[-1].strip("\"' ")
    for argument in argv[1:]:
        key = argument.lstrip("-").partition("=")[0]
        if key.startswith("config.") and key.rpartition(".")[2] in reason:
            if isinstance(error, TypeError):
                return f"{argument}: wrong type ({reason})"
            return f"--{key}: the config has no such key"
    return f"the config cannot be read: {reason}"


def build(cls: type, values: ml_collections.ConfigDict, key: str, **extra: Any) -> Any:
    """Makes a config dataclass; an unknown or missing key is an error that names it."""
    given = plain(values) | extra
    names = {field.name: field for field in dataclasses.fields(cls)}
    for name in given:
        if name not in names:
            raise ConfigError(f"config.{key}.{name}: no such key; {cls.__name__} has no {name}")
    for name, field in names.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in given and required:
            raise ConfigError(f"config.{key}.{name} is missing")
    hints = typing.get_type_hints(cls)
    for name, value in given.items():
        _check_type(value, hints[name], f"config.{key}.{name}")
    return cls(**given)


def _check_type(value: Any, hint: Any, key: str) -> None:
    """Scalars only: bool, int, float and str, or None where the hint allows it."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    scalars = [t for t in allowed if t in (bool, int, float, str, types.NoneType)]
    if len(scalars) != len(allowed):
        return
    if float in scalars and isinstance(value, int) and not isinstance(value, bool):
        return
    if type(value) not in scalars:
        names = " or ".join(t.__name__ for t in scalars)
        raise ConfigError(f"{key} is {value!r}, a {type(value).__name__}; it must be {names}")


def plain(config: Any) -> Any:
    """Nested dicts and tuples, as dataclasses and JSON take them."""
    if isinstance(config, ml_collections.ConfigDict):
        return {name: plain(config[name]) for name in config}
    if isinstance(config, dict):
        return {name: plain(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return tuple(plain(x) for x in config)
    return config


def save(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes config.json, or checks that the run's own config is the same experiment.

    Raises:
      ConfigError: the folder can't be written, or holds a run of another config.
    """
    path = workdir / "config.json"
    text = json.dumps(plain(config), indent=2, sort_keys=True)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write(path, text)
            return
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error
    before, now = _flatten(load(workdir)), _flatten(json.loads(text))
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and key.split(".")[0] not in RESUMABLE_KEYS
        and key not in RESUMABLE_KEYS
    ]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"--workdir={workdir} holds a run with another config ({key} is {before.get(key)!r} "
            f"there and {now.get(key)!r} here); for a new run, add "
            f"--workdir={run_folder.free(workdir)}"
        )
    _write(path, text)


def _write(path: epath.Path, text: str) -> None:
    """Whole or not at all, so that a killed run leaves a config that can be read."""
    partial = path.with_suffix(".json.part")
    partial.write_text(text)
    partial.replace(path)


def load(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads the config that a run was made with."""
    path = workdir / "config.json"
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: no run there ({path} cannot be read)") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a config ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a config ({type(values).__name__} instead of an object)")
    return ml_collections.ConfigDict(values)


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(config, dict | ml_collections.ConfigDict):
        flat = {}
        for name in config:
            flat |= _flatten(config[name], f"{prefix}{name}.")
        return flat
    value = list(config) if isinstance(config, tuple) else config
    return {prefix.rstrip("."): value}
