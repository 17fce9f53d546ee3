"""Folder of a run: checks before training writes there, and the files that it writes first."""

import ml_collections
from etils import epath

from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.runtime import distributed, environment, files
from linear_transformer.training import config_file, run_folder
from linear_transformer.training.checkpoints import saved_steps
from linear_transformer.training.lock import FolderLock
from linear_transformer.training.metrics import LOSS_FILE, read_metrics
from linear_transformer.training.optimizers import OptimizerConfig

DATA_FILE = "data.json"  # fingerprints of the training data
_IS_FOLDER = {
    "checkpoints": True,
    "tensorboard": True,
    "profile": True,
    "config.json": False,
    "metrics.jsonl": False,
    DATA_FILE: False,
    environment.FILE: False,
    LOSS_FILE: False,
}


def prepare_run_folder(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    lock: FolderLock,
    fingerprints: dict[str, str],
) -> None:
    """Locks the folder, checks that it holds the same run, and writes config and environment.

    Raises:
      ConfigError: the folder can't be written, holds another run, has lost its checkpoints, or has
        a file in the place of a folder.
    """
    lock.acquire()
    for name, is_folder in _IS_FOLDER.items():
        path = workdir / name
        if path.exists() and path.is_dir() != is_folder:
            found, wanted = ("file", "folder") if is_folder else ("folder", "file")
            raise ConfigError(f"{path}: a {found}, where a run has a {wanted}")
    if (workdir / "config.json").exists():
        before = config_file.load(workdir)
        _check_schedule(before, config, workdir)
        check_data(workdir, config, fingerprints)
        _check_checkpoints(before, workdir)
    config_file.save(config, workdir)
    try:
        files.write_json(workdir / DATA_FILE, fingerprints)
        environment.save(workdir / environment.FILE)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: cannot be written ({error.strerror})") from error


def check_data(
    workdir: epath.Path, config: ml_collections.ConfigDict, fingerprints: dict[str, str]
) -> None:
    """Raises a ConfigError unless the run was started with the same data.

    An older run without data.json is not checked; the function prints a line that says so.
    """
    path = workdir / DATA_FILE
    try:
        before = files.parse_json(path.read_text())
        if not isinstance(before, dict):
            raise ValueError("not an object with a SHA-256 for each key")
    except FileNotFoundError:
        print(f"{'data:':12} not compared with those of before; {path} is missing", flush=True)
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    for key in sorted(before.keys() | fingerprints.keys()):
        then, now = before.get(key), fingerprints.get(key)
        if then != now:
            value = config.data.get(key.rpartition(".")[2])
            raise ConfigError(
                f"{key} = {value}: not the data of the run in {workdir} (SHA-256 "
                f"{str(then)[:8]} there, {str(now)[:8]} here); bring the old data back, or train "
                "in another --workdir"
            )


def _check_schedule(
    before: ml_collections.ConfigDict, now: ml_collections.ConfigDict, workdir: epath.Path
) -> None:
    """Raises a ConfigError if the new number of steps would change the rates of past steps."""
    ends = []
    for config in (before, now):
        optimizer = configuration.build(OptimizerConfig, config.optimizer, "optimizer")
        ends.append(optimizer.end(config.num_steps))
    then, end = ends
    if then != end:
        raise ConfigError(
            f"config.num_steps is {before.num_steps} in {workdir} and {now.num_steps} here, and "
            f"the {now.optimizer.schedule} schedule ends there: --config.optimizer.schedule_steps="
            f"{then} keeps its end; for a new run, add --workdir={run_folder.free(workdir)}"
        )


def _check_checkpoints(before: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Raises a ConfigError if the checkpoints of a run were lost.

    A run that was killed before its first checkpoint is allowed to start again: its folder of
    checkpoints exists, and its metrics end before the step of the first checkpoint.
    """
    done = max((record["step"] for record in read_metrics(workdir)), default=0)
    folder = workdir / "checkpoints"
    emptied = done > before.checkpoint_every
    removed = done and not folder.exists() and "://" not in str(folder)  # buckets have no folders
    if not saved_steps(folder) and (emptied or removed):
        raise ConfigError(
            f"--workdir={workdir}: metrics.jsonl is at step {done}, and there is no checkpoint; "
            "put checkpoints/ back, or choose another --workdir"
        )


def check_shared(workdir: epath.Path) -> None:
    """Raises a ConfigError if the processes do not share the run folder."""
    seen = distributed.gather((workdir / "config.json").exists())
    if not all(seen):
        raise ConfigError(
            f"--workdir={workdir}: process {seen.index(False)} does not see what process 0 writes "
            "there; several machines need a folder that they share, such as one in gs://"
        )
