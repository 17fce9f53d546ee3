"""State of a training run, and the step that advances it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from linear_transformer.data.stream import NO_SEQUENCES, Sequences
from linear_transformer.nn.layers.batch_norm import DECAY
from linear_transformer.nn.parameters import declarations
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.sharding import placement
from linear_transformer.sharding.data_parallel import WHOLE, Shards
from linear_transformer.types import Metrics, PRNGKey

Loss = Callable[[nnx.Module, Any, PRNGKey | None], Metrics]  # the metric "loss" is minimised


class TrainState(NamedTuple):
    """State that a training step updates.

    Attributes:
      step: number of updates so far.
      parameters: nested dict of arrays.
      optimizer: state of the optax transformation.
      average: exponential moving average of the parameters, or None.
      statistics: nested dict of the running statistics of batch norms; empty without any.
    """

    step: jax.Array
    parameters: Any
    optimizer: Any
    average: Any
    statistics: Any

    @property
    def evaluated(self) -> Any:
        """Parameters that evaluation and sampling use, and statistics, in one nested dict."""
        parameters = self.parameters if self.average is None else self.average
        return nnx.to_pure_dict(nnx.merge_state(parameters, self.statistics))


def _initializer(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    seed: int,
    ema_decay: float,
) -> Callable[[], tuple[TrainState, nnx.Module]]:
    """Returns a function that makes the model and its initial training state."""

    def init() -> tuple[TrainState, nnx.Module]:
        model = make_model(ParameterRngs(seed))
        parameters, statistics = map(nnx.to_pure_dict, nnx.state(model, nnx.Param, nnx.BatchStat))
        average = jax.tree.map(jnp.copy, parameters) if ema_decay else None
        state = TrainState(
            jnp.zeros((), jnp.int32), parameters, optimizer.init(parameters), average, statistics
        )
        return state, model

    return init


def _shardings(mesh: Mesh, state: TrainState, model: nnx.Module) -> Any:
    return placement.shardings(mesh, state, declarations(model))


def init_state(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    mesh: Mesh | None = None,
) -> TrainState:
    """Initialises the state in one compiled call; all backends and device counts agree.

    Args:
      make_model: makes the model from its random number generators.
      optimizer: the optax transformation.
      seed: seed of the parameters.
      ema_decay: decay of the average of the parameters; 0 for no average.
      mesh: mesh over which the state is sharded (`sharding.placement`); the default device if
        None.
    """
    init = _initializer(make_model, optimizer, seed, ema_decay)

    def sharded() -> TrainState:
        state, model = init()
        if mesh is None:
            return state
        return jax.lax.with_sharding_constraint(state, _shardings(mesh, state, model))

    return jax.jit(sharded)()


def abstract_state(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    mesh: Mesh,
) -> TrainState:
    """Returns shapes, dtypes and shardings of `init_state` without computing anything."""
    state, model = nnx.eval_shape(_initializer(make_model, optimizer, seed, ema_decay))
    return placement.abstract(state, _shardings(mesh, state, model))


def make_train_step(
    model: nnx.Module,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate_steps: int,
    ema_decay: float,
    sequences: Sequences = NO_SEQUENCES,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Returns the jitted function `(state, batch) -> (state, metrics)`; it donates the state.

    The model may hold `jax.ShapeDtypeStruct` in place of arrays; its values are not used.

    With accumulation, the batch is split into equal parts along its rows. Sums and counts are added
    over the parts, so the gradient equals the gradient of the whole batch for any weights.  Under
    `jax.set_mesh`, the step runs on that mesh: each device has its own tokens, and state and batch
    are arrays on the mesh (`sharding.placement`). `sequences` is an argument of
    `sharding.data_parallel.Shards`.
    """
    graphdef, _, abstract = nnx.split(model, nnx.Param, nnx.BatchStat)
    declared = declarations(model)

    def loss_sum(parameters, batch, key):
        zeros = jax.tree.map(jnp.zeros_like, abstract)  # batch norms add to them
        model = nnx.merge(graphdef, parameters, zeros)
        metrics = loss(model, batch, key)
        of_batch = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return metrics["loss"][0], (metrics, of_batch)

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
        shards = Shards(state.parameters, declared, batch, sequences)

        def on_one_device(parameters, batch, key):
            gradients, others = sums(shards.marked(parameters), batch, shards.key(key))
            return shards.gradients(gradients), shards.total(others)

        inputs, outputs = (shards.parameters, shards.batch, WHOLE), (shards.parameters, WHOLE)
        on_all_devices = shards.mapped(on_one_device, inputs, outputs)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, (metrics, of_batch) = on_all_devices(state.parameters, batch, key)
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
        state = TrainState(state.step + 1, parameters, optimizer_state, average, statistics)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.size > 1:  # the new state keeps the shardings of the old one
            state = jax.lax.with_sharding_constraint(state, placement.specs(mesh, state, declared))
        return state, metrics

    return jax.jit(train_step, donate_argnums=0)
