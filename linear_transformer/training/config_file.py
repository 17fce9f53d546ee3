"""Config of a run, stored as config.json in its folder."""

import json

import ml_collections
from etils import epath

from linear_transformer.config.configuration import plain
from linear_transformer.errors import ConfigError
from linear_transformer.runtime import files
from linear_transformer.training import experiment, run_folder

# The keys that a resumed run may change: they set its length and its reports, not what a step
# computes.
RESUMABLE_KEYS = (
    "num_steps",
    "log_every",
    "eval_every",
    "eval_batches",
    "stop_when",
    "checkpoint_every",
    "keep_checkpoints",
    "final_evaluation",
    "sample",
    "mesh",
    "beam_width",
    "optimizer.schedule_steps",  # `training.folder` compares where schedules end
)


def may_change(key: str) -> bool:
    """Returns whether a resumed run may change the value of a key."""
    return key in RESUMABLE_KEYS or key.partition(".")[0] in RESUMABLE_KEYS


def save(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes config.json; checks first that an existing one describes the same experiment.

    Raises:
      ConfigError: the folder can't be written, or holds a run with another config.
    """
    path = workdir / "config.json"
    text = json.dumps(plain(config), indent=2, sort_keys=True)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            files.write_text(path, text)
            return
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error
    before, now = (experiment.flat(each) for each in (load(workdir), config))
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not may_change(key)
    ]
    if changed:
        # The key that caused the other changes: keys that follow from others come last.
        key = min(changed, key=lambda key: (key in experiment.FOLLOWING, key.count(".")))
        raise ConfigError(
            f"--workdir={workdir} holds a run with another config ({key} is {before.get(key)!r} "
            f"there and {now.get(key)!r} here); for a new run, add "
            f"--workdir={run_folder.free(workdir)}"
        )
    files.write_text(path, text)


def load(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads and resolves the config of a run; missing keys get their defaults.

    Raises:
      ConfigError: the folder holds no run, or this version does not know a key of the config.
    """
    config = read(workdir)
    try:
        return experiment.resolve(config)
    except ConfigError as error:
        path = workdir / "config.json"
        raise ConfigError(f"{path}: {error}; another version of the code wrote it") from error


def read(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads the config of a run, also one written by another version of the code.

    Raises:
      ConfigError: the folder holds no run, or the file is not a config.
    """
    path = workdir / "config.json"
    try:
        values = files.parse_json(path.read_text())
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: no run there ({path} cannot be read)") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a config ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a config ({type(values).__name__} instead of an object)")
    if isinstance(mesh := values.get("mesh"), dict):
        mesh.pop("exchange", None)  # a former key, which changed no result
    return ml_collections.ConfigDict(values)
