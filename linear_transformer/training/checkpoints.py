"""Checkpoints: model, optimizer, step and data position as one Orbax checkpoint.

Orbax notices a missing file but not every changed bit, so each checkpoint gets a list of checksums.
"""

import json
import os
import zlib
from typing import Any

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from linear_transformer.errors import ConfigError
from linear_transformer.training.state import TrainState

_CHECKSUMS = "checksums.json"


class Checkpoints:
    """The checkpoints of one run, newest kept, each written whole or not at all."""

    def __init__(self, workdir: epath.Path, keep: int, *, clean: bool = True):
        """Opens the folder, and makes it if need be.

        Args:
          workdir: folder of the run.
          keep: number of checkpoints.
          clean: removes what a killed run left half written; not beside a run that may be writing.

        Raises:
          ConfigError: the folder can't be written.
        """
        self._unreadable: list[int] = []
        directory = workdir / "checkpoints"
        if "://" not in str(directory):  # Orbax takes absolute paths only
            directory = epath.Path(os.path.abspath(directory))
        try:
            self._checkpointer = ocp.training.Checkpointer(
                directory,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=clean,
            )
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be written ({error.strerror})") from error

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Writes synchronously: donated buffers must not change under the writer."""
        while self._unreadable:  # as the newest ones they would crowd out those that can be read
            self._checkpointer.delete(self._unreadable.pop(), missing_ok=True)
        self._checkpointer.save_checkpointables(
            step, {"state": state._asdict(), "progress": progress}, overwrite=True, force=True
        )
        if jax.process_index() == 0:
            _write_checksums(self._checkpointer.directory / str(step))

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None if there is none.

        Args:
          state: a state of the same shapes (arrays or `jax.ShapeDtypeStruct`).

        Raises:
          ConfigError: there are checkpoints, but none can be read.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state._asdict()
        )
        found = list(self._checkpointer.checkpoints)
        for checkpoint in reversed(found):
            try:
                _verify(checkpoint.path)
                loaded = self._checkpointer.load_checkpointables(
                    checkpoint.step, {"state": abstract, "progress": None}
                )
                return TrainState(**loaded["state"]), loaded["progress"]
            except Exception as error:  # whatever a damaged file makes the libraries raise
                self._unreadable.append(checkpoint.step)
                reason = str(error).strip().splitlines() or [type(error).__name__]
                logging.warning(
                    "checkpoint of step %d cannot be read (%s); trying the one before",
                    checkpoint.step,
                    reason[0],
                )
        if found:
            raise ConfigError(f"{self._checkpointer.directory}: no checkpoint can be read")
        return None

    def close(self) -> None:
        self._checkpointer.close()


def _write_checksums(folder: epath.Path) -> None:
    files = [parent / name for parent, _, names in folder.walk() for name in names]
    sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in sorted(files)}
    partial = folder / f"{_CHECKSUMS}.part"
    partial.write_text(json.dumps(sums, indent=1))
    partial.replace(folder / _CHECKSUMS)


def _verify(folder: epath.Path) -> None:
    """Raises unless every file is as it was written."""
    path = folder / _CHECKSUMS
    if not path.exists():  # killed just before it was written: the checkpoint itself is whole
        return
    for name, checksum in json.loads(path.read_text()).items():
        if _checksum(folder / name) != checksum:
            raise ValueError(f"{folder / name} is damaged")


def _checksum(path: epath.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            checksum = zlib.crc32(piece, checksum)
    return checksum
