"""Checkpoints: model, optimizer, step and data position as one Orbax checkpoint."""

from typing import Any

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from linear_transformer.errors import ConfigError
from linear_transformer.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, newest kept, each written whole or not at all."""

    def __init__(self, workdir: epath.Path, keep: int):
        directory = workdir / "checkpoints"
        try:
            self._checkpointer = ocp.training.Checkpointer(
                directory,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )
        except OSError as error:
            raise ConfigError(f"{directory}: cannot be written ({error.strerror})") from error

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Writes synchronously: donated buffers must not change under the writer."""
        self._checkpointer.save_checkpointables(
            step, {"state": state._asdict(), "progress": progress}, overwrite=True, force=True
        )

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
                loaded = self._checkpointer.load_checkpointables(
                    checkpoint.step, {"state": abstract, "progress": None}
                )
                return TrainState(**loaded["state"]), loaded["progress"]
            except Exception as error:  # whatever a damaged file makes the libraries raise
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
