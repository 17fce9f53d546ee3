"""Configs: from the command line, to and from a run's folder."""

import dataclasses
import json
import math
import sys
import traceback
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from absl import app, flags, logging
from etils import epath

from linear_transformer import accelerators, distributed, run_folder, schema, shipped_configs
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


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of a key."""
    return key in RESUMABLE_KEYS or key.partition(".")[0] in RESUMABLE_KEYS


class RunError(Exception):
    """A run that can't go on although its config is right; one line, exit status 1."""


def run(main: Callable[..., None], default: str | None = None) -> None:
    """Parses the flags and runs `main`; a user's mistake is one line and exit status 2.

    A RunError is one line too, and exit status 1.

    Args:
      main: called with the config and the command line if there is a `default`, else with nothing.
      default: config file of the --config flag.
    """
    accelerators.leave_out_absent_tpu()
    if default:
        shipped_configs.make_importable()
        default = shipped_configs.find(default)
        sys.argv[1:] = shipped_configs.find_in_arguments(sys.argv[1:])
    arguments: list[Any] = []

    def parse(argv: list[str]) -> list[str]:
        try:
            return _parse(argv, default, arguments)
        except UserError as error:
            _fail(error)

    def guarded(_: list[str]) -> None:
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


def _parse(argv: list[str], default: str | None, arguments: list[Any]) -> list[str]:
    """The arguments that are no flags; the config and its path are added to `arguments`."""
    if default:
        _define_flags(default)
    try:
        if default:
            argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
            line = _command_line().split(argv, default)
            argv = line.rest
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if len(rest) > 1:
        raise ConfigError(f"unknown argument {rest[1]!r}; flags look like --name=value")
    if default:
        config = _command_line().load(line.path)
        config = _command_line().override(config, line.overrides)
        if flags.FLAGS["print_config"].value:
            print("\n".join(_experiment().listing(config)), flush=True)
            sys.exit(0)
        arguments += [_experiment().resolve(config), line]
    return rest


def _define_flags(default: str) -> None:
    """The flags that every program with a config has; --help shows them as its own."""
    if "config" in flags.FLAGS:
        return
    flags.DEFINE_string(
        "config",
        default,
        "Experiment: a config file, with :variant if it has any.  --config.KEY=VALUE changes one "
        "of its keys.",
    )
    flags.DEFINE_bool("print_config", False, "List all keys of the config with their meanings.")
    for name in ("config", "print_config"):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _command_line():
    """Imported on use: it needs this module, and all models."""
    from linear_transformer import command_line

    return command_line


def _experiment():
    """Imported on use, as `_command_line`."""
    from linear_transformer import experiment

    return experiment


def _fail(error: Exception, status: int = 2) -> typing.NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    if distributed.has_others():
        distributed.leave(status)
    sys.exit(status)


def build(cls: type, values: Any, key: str, **extra: Any) -> Any:
    """Makes a config dataclass; an unknown or missing key is an error that names it.

    Args:
      cls: dataclass; `schema.check` of its values is its own.
      values: of the keys that a config file may set.
      key: of the section, "" for the experiment itself.
      extra: values of other fields.
    """
    prefix = f"config.{key}." if key else "config."
    if not isinstance(values, dict | ml_collections.ConfigDict):
        raise ConfigError(f"{prefix[:-1]} is {values!r}; it must be a section with keys")
    given, known = plain(values), schema.keys(cls)
    for name in given:
        if name not in known:
            raise schema.unknown(prefix + name, known)
    given |= extra
    for name, field in known.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in given and required:
            raise ConfigError(f"{prefix}{name} is missing")
    for name, value in given.items():
        hint = schema.hints(cls)[name]
        schema.check_type(value, hint, prefix + name)
        if type(value) is int and hint in (float, float | None):
            given[name] = float(value) if abs(value) < 10**300 else math.inf
    return cls(**given)


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
    before, now = (_experiment().flat(each) for each in (load(workdir), config))
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not may_change(key)
    ]
    if changed:
        # What changed the others: a section's own key, and not one that follows from it.
        key = min(changed, key=lambda key: (key in _experiment().FOLLOWING, key.count(".")))
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
    """Reads the config that a run was made with; keys that it lacks have their defaults.

    Raises:
      ConfigError: no run, or a config that this version does not know.
    """
    config = read(workdir)
    try:
        return _experiment().resolve(config)
    except ConfigError as error:
        path = workdir / "config.json"
        raise ConfigError(f"{path}: {error}; another version of the code wrote it") from error


def read(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads a run's config as it is written, whatever version of the code wrote it.

    Raises:
      ConfigError: no run, or a file that is no config.
    """
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


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
