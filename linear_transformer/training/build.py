"""Experiment: mesh, task, model, optimizer and training step, built from a config."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from linear_transformer.config import configuration
from linear_transformer.data.stream import NO_SEQUENCES, Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.nn.layers.batch_norm import DECAY
from linear_transformer.nn.parameters import declarations
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.sharding.data_parallel import ROWS, WHOLE, Shards
from linear_transformer.sharding.mesh import SEQUENCE, MeshConfig, make_mesh
from linear_transformer.tasks.base import Task
from linear_transformer.training import capacity
from linear_transformer.training.experiment import resolve
from linear_transformer.training.optimizers import (
    OptimizerConfig,
    check_options,
    make_optimizer,
    make_schedule,
)
from linear_transformer.training.state import TrainState, abstract_state, init_state, state_specs
from linear_transformer.types import Device, Metrics, PRNGKey

# (model, batch, key) -> metrics, of which "loss" is minimised; with a carried state a pair of
# metrics and the next state.
Loss = Callable[[nnx.Module, Any, PRNGKey | None], Any]


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


def make_train_step(
    model: nnx.Module,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate_steps: int,
    ema_decay: float,
    carries_state: bool = False,
    sequences: Sequences = NO_SEQUENCES,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Returns the jitted function `(state, batch) -> (state, metrics)`; it donates the state.

    The model may hold `jax.ShapeDtypeStruct` in place of arrays; its values are not used.

    With accumulation, the batch is split into equal parts along its rows. Sums and counts are added
    over the parts, so the gradient equals the gradient of the whole batch for any weights.  Under
    `jax.set_mesh`, the step runs on that mesh: each device has its own tokens, and state and batch
    are arrays on the mesh (`sharding.placement`). `sequences` is an argument of
    `sharding.data_parallel.Shards`.

    If `carries_state`, the loss is `Task.carried_loss`: each row starts from the state after
    the same row of the batch before.  No gradient passes to an earlier batch.
    """
    graphdef, _, abstract = nnx.split(model, nnx.Param, nnx.BatchStat)
    declared = declarations(model)

    def loss_sum(parameters, batch, key):
        zeros = jax.tree.map(jnp.zeros_like, abstract)  # batch norms add to them
        model = nnx.merge(graphdef, parameters, zeros)
        metrics, carried = loss(model, batch, key), None
        if carries_state:
            metrics, carried = metrics
        of_batch = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return metrics["loss"][0], (metrics, of_batch, carried)

    gradient = jax.grad(loss_sum, has_aux=True)

    def sums(parameters, batch, key):
        if accumulate_steps == 1:
            return gradient(parameters, batch, key)
        parts = jax.tree.map(lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, accumulate_steps)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, parameters, first, keys[0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(parameters, *part)), None

        return jax.lax.scan(add, zeros, (parts, keys))[0]

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if carries_state:
            batch = batch | {"state": state.carried}
        shards = Shards(state.parameters, declared, batch, sequences)

        def on_one_device(parameters, batch, key):
            key = shards.key(key)
            gradients, (*others, carried) = sums(shards.marked(parameters), batch, key)
            return shards.gradients(gradients), shards.total(others), carried

        inputs, outputs = (shards.parameters, shards.batch, WHOLE), (shards.parameters, WHOLE, ROWS)
        on_all_devices = shards.mapped(on_one_device, inputs, outputs)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, (metrics, of_batch), carried = on_all_devices(state.parameters, batch, key)
        count = jnp.maximum(metrics["loss"][1], 1)
        gradients = jax.tree.map(lambda g: g / count.astype(g.dtype), gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        average = state.average
        if ema_decay:
            average = optax.incremental_update(parameters, average, 1 - ema_decay)
        statistics = optax.incremental_update(of_batch, state.statistics, 1 - DECAY)
        one = jnp.ones(())
        metrics = metrics | {"gradient_norm": (optax.tree.norm(gradients), one)}
        state = TrainState(
            state.step + 1, parameters, optimizer_state, average, statistics, carried
        )
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.size > 1:  # the new state keeps the shardings of the old one
            state = jax.lax.with_sharding_constraint(state, state_specs(mesh, state, declared))
        return state, metrics

    return jax.jit(train_step, donate_argnums=0)


class Experiment:
    """Experiment that a config describes; nothing is computed before a method is called.

    Attributes:
      config: the resolved config.
      mesh: the mesh of devices.
      task: the task, with its model, data and loss.
      model: the model with `jax.ShapeDtypeStruct` in place of arrays.
      graphdef: the model without its parameters.
      schedule: function from the number of past steps to the learning rate.
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
        if config.data.get("packing") == "carried" and not self.task.carries_state:
            raise ConfigError(f"config.data.packing is 'carried'; {config.task} carries no state")
        self.model = nnx.eval_shape(lambda: self.task.make_model(ParameterRngs(config.seed)))
        if self.task.carries_state:
            self._check_carried()
        self.graphdef = nnx.graphdef(self.model)
        optimizer = configuration.build(OptimizerConfig, config.optimizer, "optimizer")
        declared = declarations(self.model, nnx.Param)
        self.schedule = make_schedule(optimizer, config.num_steps)
        self.optimizer = make_optimizer(optimizer, config.num_steps, declared)
        if optimizer.options:
            parameters = nnx.to_pure_dict(nnx.state(self.model, nnx.Param))
            check_options(optimizer, config.num_steps, declared, parameters)

    def _check_carried(self) -> None:
        """Raises a ConfigError if the model or the step cannot carry a state over the batches."""
        carried = "config.data.packing is 'carried'"
        capacity = getattr(self.model, "capacity", None)
        if capacity is not None:
            raise ConfigError(
                f"{carried}; state or positions of the model hold {capacity:,} tokens"
            )
        if self.config.accumulate_steps > 1:
            raise ConfigError(f"{carried}; config.accumulate_steps must be 1")
        if self.mesh.shape[SEQUENCE] > 1:
            raise ConfigError(f"{carried}; config.mesh.sequence must be 1")

    @property
    def _options(self) -> dict[str, Any]:
        return {"seed": self.config.seed, "ema_decay": self.config.ema_decay}

    @property
    def _state_options(self) -> dict[str, Any]:
        rows = self.config.data.batch_size if self.task.carries_state else 0
        return self._options | {"carried_rows": rows, "mesh": self.mesh}

    def init_state(self) -> TrainState:
        """Returns the state at step 0, sharded over the mesh."""
        return init_state(self.task.make_model, self.optimizer, **self._state_options)

    def abstract_state(self) -> TrainState:
        """Returns shapes, dtypes and shardings of `init_state` without computing anything."""
        return abstract_state(self.task.make_model, self.optimizer, **self._state_options)

    def train_step(self) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
        """Returns the training step of the config; call it under `jax.set_mesh(mesh)`."""
        return make_train_step(
            self.model,
            self.task.carried_loss if self.task.carries_state else self.task.loss,
            self.optimizer,
            accumulate_steps=self.config.accumulate_steps,
            carries_state=self.task.carries_state,
            sequences=self.task.sequences,
            **self._options,
        )

    def evaluate(
        self, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Evaluates a split on the mesh; see `Task.evaluate`."""
        with jax.set_mesh(self.mesh):
            return self.task.evaluate(self.graphdef, parameters, split, max_batches)

    def metric_names(self) -> list[str]:
        """Returns the names of the metrics of an evaluation; see `Task.metric_names`."""
        parameters = nnx.to_pure_dict(nnx.state(self.model, (nnx.Param, nnx.BatchStat)))
        return self.task.metric_names(self.graphdef, parameters)
