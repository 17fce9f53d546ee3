"""Experiment: mesh, task, model and optimizer, built from a config."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.nn.parameters import declarations
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.sharding.mesh import SEQUENCE, MeshConfig, make_mesh
from linear_transformer.tasks.base import Task
from linear_transformer.training import capacity
from linear_transformer.training.experiment import resolve
from linear_transformer.training.optimizers import OptimizerConfig, make_optimizer
from linear_transformer.training.state import (
    TrainState,
    abstract_state,
    init_state,
    make_train_step,
)
from linear_transformer.types import Device, Metrics


def training_mesh(
    config: ml_collections.ConfigDict, devices: Sequence[Device] | None = None
) -> Mesh:
    """Returns the device mesh that a config describes for training.

    Args:
      config: config of the experiment.
      devices: devices of the mesh; all devices of JAX if None.

    Raises:
      ConfigError: config.mesh has a mistake, or the devices cannot form the mesh.
    """
    rows = config.data.batch_size // config.accumulate_steps
    return make_mesh(MeshConfig.from_config(config), rows, devices)


def one_device() -> Mesh:
    """Returns a mesh of JAX's first device alone."""
    return make_mesh(MeshConfig(data=1), 0)


def make_task(config: ml_collections.ConfigDict) -> Task:
    """Makes the task of an experiment; imports the module of its name when it is called.

    Raises:
      UserError: the config or the data have a mistake.
    """
    config = resolve(config)
    module = importlib.import_module(f"linear_transformer.tasks.{config.task}")
    return getattr(module, config.task.title().replace("_", ""))(config)


class Experiment:
    """Experiment that a config describes; nothing is computed before a method is called.

    Attributes:
      config: the resolved config.
      mesh: the mesh of devices.
      task: the task, with its model, data and loss.
      model: the model with `jax.ShapeDtypeStruct` in place of arrays.
      graphdef: the model without its parameters.
      optimizer: the optimizer with its schedule.
    """

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh | None = None):
        """Builds the experiment and reads its data.

        Args:
          config: config of the experiment.
          mesh: mesh to use; `training_mesh(config)` if None.

        Raises:
          UserError: config or data have a mistake, or the devices cannot form the mesh.
        """
        self.config = config = resolve(config)
        self.mesh = training_mesh(config) if mesh is None else mesh
        capacity.check(config, self.mesh.devices.ravel().tolist())
        self.task = make_task(config)
        shards = self.mesh.shape[SEQUENCE]
        if shards > 1 and not self.task.sequences.names:
            raise ConfigError(
                f"config.mesh.sequence is {shards}; an example of {config.task} is no sequence"
            )
        self.model = nnx.eval_shape(lambda: self.task.make_model(ParameterRngs(config.seed)))
        self.graphdef = nnx.graphdef(self.model)
        optimizer = configuration.build(OptimizerConfig, config.optimizer, "optimizer")
        declared = declarations(self.model, nnx.Param)
        self.optimizer = make_optimizer(optimizer, config.num_steps, declared)

    @property
    def _options(self) -> dict[str, Any]:
        return {"seed": self.config.seed, "ema_decay": self.config.ema_decay}

    def init_state(self) -> TrainState:
        """Returns the state at step 0, sharded over the mesh."""
        return init_state(self.task.make_model, self.optimizer, mesh=self.mesh, **self._options)

    def abstract_state(self) -> TrainState:
        """Returns shapes, dtypes and shardings of `init_state` without computing anything."""
        return abstract_state(self.task.make_model, self.optimizer, mesh=self.mesh, **self._options)

    def train_step(self) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """Returns the training step of the config; call it under `jax.set_mesh(mesh)`."""
        return make_train_step(
            self.model,
            self.task.loss,
            self.optimizer,
            accumulate_steps=self.config.accumulate_steps,
            sequences=self.task.sequences,
            **self._options,
        )

    def evaluate(
        self, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Evaluates a split on the mesh; see `Task.evaluate`."""
        with jax.set_mesh(self.mesh):
            return self.task.evaluate(self.graphdef, parameters, split, max_batches)
