"""Config flags of a command line: --config=FILE[:VARIANT], and --config.KEY=VALUE for any key."""

import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags

from linear_transformer.config import configuration, schema, shipped_configs
from linear_transformer.errors import ConfigError, UserError
from linear_transformer.runtime import program
from linear_transformer.training import experiment

# Keys that decide which other keys exist.
_DECIDING = ("task", "encoder", "data.dataset", "optimizer.name")


class Override(NamedTuple):
    """Key of the config, with the text of its value and the flag as the user wrote it."""

    key: str
    text: str | None
    flag: str


class CommandLine(NamedTuple):
    """Command line, split into config flags and other arguments.

    Attributes:
      path: value of --config.
      overrides: changes of the config, in the order of the flags.
      rest: all other arguments; absl parses them.
    """

    path: str
    overrides: list[Override]
    rest: list[str]


def parse(argv: list[str], default: str) -> tuple[ml_collections.ConfigDict, CommandLine]:
    """Parses the command line of a program that has a config, for `program.run`.

    Args:
      argv: the command line; its first entry is the name of the program.
      default: default value of the --config flag.

    Returns:
      The resolved config, and the command line.

    Raises:
      ConfigError: a flag has a mistake, the config file raises an error, or a key is wrong.
    """
    shipped_configs.make_importable()
    default = shipped_configs.find(default)
    argv = [argv[0], *shipped_configs.find_in_arguments(argv[1:])]
    _define_flags(default)
    line = split(_with_flag_files(argv), default)
    program.parse_flags(line.rest)
    config = override(load(line.path), line.overrides)
    if flags.FLAGS["print_config"].value:
        print("\n".join(experiment.listing(config)), flush=True)
        sys.exit(0)
    return experiment.resolve(config), line


def _with_flag_files(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _define_flags(default: str) -> None:
    """Defines the flags of every program with a config; --help lists them with its own flags."""
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


def split(argv: Sequence[str], default: str) -> CommandLine:
    """Splits the arguments into config flags and other arguments.

    Args:
      argv: the arguments; the first one is the name of the program.
      default: path of the config if --config is missing.
    """
    path, overrides, rest = default, [], list(argv[:1])
    arguments = list(argv[1:])
    while arguments:
        argument = arguments.pop(0)
        name, equals, text = argument.partition("=")
        name = name.lstrip("-") if argument.startswith("-") else ""
        negated = name.startswith("noconfig.")
        if argument == "--":
            rest += [argument, *arguments]
            break
        if name == "config":
            if not equals and arguments:
                text = arguments.pop(0)
            path = text
        elif name.startswith("config.") or negated:
            key = name.partition(".")[2]
            if not equals and not negated and arguments and not arguments[0].startswith("--"):
                equals, text = " ", arguments.pop(0)
            flag = f"--{name}{equals}{text}"
            value = text if equals else "false" if negated else None
            overrides.append(Override(key, value, flag))
        else:
            rest.append(argument)
    return CommandLine(path, overrides, rest)


def load(path: str) -> ml_collections.ConfigDict:
    """Runs `get_config` of a config file, given as FILE or FILE:VARIANT.

    Raises:
      ConfigError: the file can't be read or raises an error; the message is one line.
    """
    file, colon, variant = path.partition(":")
    loader = importlib.machinery.SourceFileLoader("_config_file", file)
    spec = importlib.machinery.ModuleSpec(loader.name, loader, origin=file)
    module = importlib.util.module_from_spec(spec)
    module.__file__ = file
    sys.modules[loader.name] = module
    try:
        loader.get_data(file)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"--config={file}: the file cannot be read ({reason})") from error
    try:
        loader.exec_module(module)
        config = _get_config(module, file, [variant] if colon else [])
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # any error of the user's code
        raise ConfigError(f"--config={path}: {_reason(error, file)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"--config={path}: get_config returns {type(config).__name__}; it must be a ConfigDict"
        )
    return config


def _get_config(module: types.ModuleType, file: str, arguments: list[str]) -> Any:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"--config={file}: the file has no function get_config")
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        needs = "has no variants" if arguments else "needs a variant, as FILE:VARIANT"
        raise ConfigError(f"--config={':'.join([file, *arguments])}: {file} {needs}") from error
    return get_config(*arguments)


def _reason(error: BaseException, file: str) -> str:
    """Returns the type, message and line number of an error that a config file raises."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    line, message = (lines or [None])[-1], str(error)
    if isinstance(error, SyntaxError):
        line, message = error.lineno, error.msg
    if isinstance(error, SystemExit):
        message = f"the file ends the program with status {error.code}"
    where = "" if line is None else f"line {line}: "
    return where + " ".join(f"{type(error).__name__}: {message}".split())


def override(
    config: ml_collections.ConfigDict, overrides: Sequence[Override]
) -> ml_collections.ConfigDict:
    """Returns the config with the values of the flags in place of its own.

    Raises:
      ConfigError: the experiment has no such key, or the value has a wrong type.
    """
    values = configuration.plain(config)
    for deciding in (True, False):
        keys = experiment.known_keys(values)
        if not deciding:
            _drop_options(values, keys, [key for key, _, _ in overrides])
        seen: set[str] = set()
        for key, text, flag in overrides:
            if (key in _DECIDING) == deciding:
                value = _value(key, text, flag, keys)
                if key in seen and isinstance(value, tuple):  # --config.a=1 --config.a=2
                    value = _get(values, key) + value
                seen.add(key)
                _set(values, key, value)
    _check_mixers(values, overrides)
    return ml_collections.ConfigDict(values)


def _drop_options(values: dict[str, Any], keys: Collection[str], changed: Collection[str]) -> None:
    """Removes the file's options for an optimizer or generator that a flag replaces."""
    for decides, section in (("optimizer.name", "optimizer"), ("data.dataset", "data")):
        options = values.get(section, {}).get("options")
        if decides in changed and isinstance(options, dict):
            values[section]["options"] = {
                name: value
                for name, value in options.items()
                if f"{section}.options.{name}" in keys
            }


def _value(key: str, text: str | None, flag: str, keys: dict[str, experiment.Key]) -> Any:
    hint = _hint(key, flag, keys)
    if text is None:
        if hint not in (bool, bool | None):
            raise ConfigError(f"{flag}: the value is missing, write --config.{key}=VALUE")
        text = "true"
    return configuration.plain(schema.parse(text, hint, flag))


def _hint(key: str, flag: str, keys: dict[str, experiment.Key]) -> Any:
    """Returns the type of a key's value; a dict without known keys accepts any key."""
    if key in keys:
        return keys[key].hint
    if children := _children(key, keys):
        raise ConfigError(
            f"{flag}: config.{key} is a section; set a key of it, such as "
            f"--config.{key}.{min(children)}=VALUE"
        )
    section, _, name = key.rpartition(".")
    while section and section not in keys and not _children(section, keys):
        section, _, name = section.rpartition(".")
    allowed = _children(section, keys)
    if section in keys and not allowed and typing.get_origin(keys[section].hint) is dict:
        return typing.get_args(keys[section].hint)[1]
    raise schema.unknown("--config." + (f"{section}.{name}" if section else name), allowed)


def _children(section: str, keys: dict[str, experiment.Key]) -> set[str]:
    prefix = f"{section}." if section else ""
    return {key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)}


def _get(values: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


def _check_mixers(values: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Raises a ConfigError if a flag sets an option of a mixer that the model does not have."""
    pattern = values.get("model", {}).get("pattern", ("linear",))
    for key, _, flag in overrides:
        if key.startswith("model.mixers."):
            name = key.split(".")[2]
            if isinstance(pattern, tuple) and name not in pattern:
                raise ConfigError(
                    f"{flag}: config.model.pattern is {','.join(pattern)}, without {name}; "
                    f"--config.model.pattern={name} has it"
                )
