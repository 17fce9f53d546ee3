"""Checkpoints: model, optimizer, step and data position as one Orbax checkpoint.

Orbax notices a missing file but not every changed bit, so each checkpoint has a list of checksums.
The list completes a checkpoint: it is written last, after every file has reached the disk, so a
folder without it was left by a killed run.  Older checkpoints are deleted only after that.
"""

import contextlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from linear_transformer.data.io.reading import files_below
from linear_transformer.errors import ConfigError, RunError
from linear_transformer.runtime import distributed
from linear_transformer.training.state import TrainState

_CHECKSUMS = "checksums.json"


class Checkpoints:
    """Checkpoints of one run; the newest are kept, and each is written atomically."""

    def __init__(self, workdir: epath.Path, keep: int, *, clean: bool = True):
        """Opens the folder of the checkpoints; creates it if it does not exist.

        Args:
          workdir: folder of the run.
          keep: number of checkpoints to keep.
          clean: whether to remove partial files of a killed run; must be False if another
            process may be writing there.

        Raises:
          ConfigError: the folder can't be written.
        """
        self._keep = keep
        self._failed = False
        self._unreadable: list[int] = []
        directory = workdir / "checkpoints"
        if "://" not in str(directory):  # Orbax takes absolute paths only
            directory = epath.Path(os.path.abspath(directory))
        try:
            self._checkpointer = ocp.training.Checkpointer(directory, cleanup_tmp_directories=clean)
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be written ({error.strerror})") from error

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Writes a checkpoint synchronously, since the next step reuses the donated buffers.

        Raises:
          RunError: the checkpoint can't be written; earlier checkpoints are unchanged.
        """
        try:
            with _quiet():
                self._write(step, _parts(**state._asdict()) | {"progress": progress})
        except Exception as error:  # the libraries do not always raise OSError
            self._failed = True
            folder = self._checkpointer.directory
            reason = _reason(error) if folder.exists() else "the folder was removed"
            raise RunError(
                f"{folder}: the checkpoint of step {step} cannot be written ({reason})"
            ) from error

    def _write(self, step: int, checkpointables: dict[str, Any]) -> None:
        while self._unreadable:  # otherwise they would count as the newest checkpoints
            self._checkpointer.delete(self._unreadable.pop(), missing_ok=True)
        self._checkpointer.save_checkpointables(step, checkpointables, overwrite=True, force=True)
        if distributed.is_first():
            _commit(self._checkpointer.directory / str(step))
        for checkpoint in list(self._checkpointer.checkpoints)[: -self._keep]:
            self._checkpointer.delete(checkpoint.step, missing_ok=True)

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Returns state and progress of the newest readable checkpoint; None if there is none.

        Args:
          state: a state of the same shapes (arrays or `jax.ShapeDtypeStruct`).

        Raises:
          ConfigError: complete checkpoints exist, but none of them can be read.
        """
        return self._newest(state, _parts(**state._asdict()))

    def restore_evaluated(self, state: TrainState) -> tuple[Any, int] | None:
        """Reads `TrainState.evaluated` and its step, but nothing else of the state.

        Args:
          state: a state of the same shapes (arrays or `jax.ShapeDtypeStruct`), with shardings.

        Returns:
          `evaluated` and step of the newest readable checkpoint; None if there is no checkpoint.

        Raises:
          ConfigError: complete checkpoints exist, but none of them can be read.
        """
        name = "parameters" if state.average is None else "average"
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            parts = _parts(state.statistics, **{name: getattr(state, name)})
            restored = self._newest(state, parts)
        return restored and (restored[0].evaluated, restored[1]["step"])

    def _newest(
        self, state: TrainState, parts: dict[str, Any]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads parts of the state, and the progress, from the newest readable checkpoint."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), parts
        )
        committed = saved_steps(self._checkpointer.directory)
        for checkpoint in reversed(self._checkpointer.checkpoints):
            loaded = self._load(checkpoint, abstract | {"progress": None})
            if loaded is not None:
                progress = loaded.pop("progress")
                return state._replace(**loaded.pop("state"), **loaded), progress
            self._unreadable.append(checkpoint.step)
        if committed:
            raise ConfigError(f"{self._checkpointer.directory}: no checkpoint can be read")
        return None

    def _load(self, checkpoint, abstract: dict[str, Any]) -> dict[str, Any] | None:
        """Loads a checkpoint; returns None in every process if it is damaged in one of them."""
        loaded = None
        steps = (
            lambda: _verify(checkpoint.path) if distributed.is_first() else None,
            lambda: self._checkpointer.load_checkpointables(checkpoint.step, abstract),
        )
        for step in steps:
            reason = None
            try:
                loaded = step()
            except Exception as error:  # a damaged file can raise any exception in the libraries
                reason = first_line(error)
            reason = next(filter(None, distributed.gather(reason)), None)
            if reason is not None:
                logging.warning(
                    "checkpoint of step %d cannot be read (%s); trying the one before",
                    checkpoint.step,
                    reason,
                )
                return None
        return loaded

    def close(self) -> None:
        if not self._failed:
            self._checkpointer.close()
            return
        with contextlib.suppress(Exception):  # `save` has raised this error already
            self._checkpointer.close()


def _parts(statistics: Any, carried: Any = None, **fields: Any) -> dict[str, Any]:
    """Returns the parts of a checkpoint; what a run has not has no part."""
    parts = {"state": fields}
    if statistics:
        parts["statistics"] = statistics
    if carried is not None:
        parts["carried"] = carried
    return parts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the threads of a save say of its errors; Orbax raises the same as exceptions.

    Orbax logs them, and TensorStore calls an event loop that has ended. Both stay hidden after an
    error: other threads of a save that failed go on, and fail later.
    """
    logger, hook = logging.get_absl_logger(), sys.unraisablehook

    def unless_loop_ended(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logger.addFilter(_is_not_of_orbax)
    sys.unraisablehook = unless_loop_ended
    yield
    sys.unraisablehook = hook
    logger.removeFilter(_is_not_of_orbax)


def _is_not_of_orbax(record: Any) -> bool:
    return "orbax" not in record.pathname


def saved_steps(directory: epath.Path) -> list[int]:
    """Returns the steps of all complete checkpoints; the folder need not exist."""
    folders = directory.iterdir() if directory.is_dir() else ()
    written = (path for path in folders if path.name.isdecimal() and (path / _CHECKSUMS).exists())
    return sorted(int(path.name) for path in written)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _reason(error: Exception) -> str:
    """Returns the text of the system's error if TensorStore's long message has its number."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else first_line(error)


def _commit(folder: epath.Path) -> None:
    """Flushes every file to the disk, then writes and flushes the list of checksums."""
    files = list(files_below(folder))
    sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in files}
    for path in [*files, *{path.parent for path in files}]:
        _sync(path)
    partial = folder / f"{_CHECKSUMS}.part"
    partial.write_text(json.dumps(sums, indent=1))
    _sync(partial)
    partial.replace(folder / _CHECKSUMS)
    _sync(folder)
    _sync(folder.parent)


def _sync(path: epath.Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk; buckets need no flush."""
    if "://" in str(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify(folder: epath.Path) -> None:
    """Raises a ValueError unless every file has the checksum that it was written with."""
    path = folder / _CHECKSUMS
    if not path.exists():
        raise ValueError(f"no {_CHECKSUMS}: it was not written to its end")
    for name, checksum in json.loads(path.read_text()).items():
        if _checksum(folder / name) != checksum:
            raise ValueError(f"{folder / name} is damaged")


def _checksum(path: epath.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            checksum = zlib.crc32(piece, checksum)
    return checksum
