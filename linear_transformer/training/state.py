"""State of a training run, and its values at step 0."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from linear_transformer.nn.logical_axes import RULES
from linear_transformer.nn.parameters import declarations
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.sharding import placement


class TrainState(NamedTuple):
    """State that a training step updates.

    Attributes:
      step: number of updates so far.
      parameters: nested dict of arrays.
      optimizer: state of the optax transformation.
      average: exponential moving average of the parameters, or None.
      statistics: nested dict of the running statistics of batch norms; empty without any.
      carried: state of the model after the last batch, for each row; None if each batch starts
        without a state.
    """

    step: jax.Array
    parameters: Any
    optimizer: Any
    average: Any
    statistics: Any
    carried: Any = None

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
    carried_rows: int,
) -> Callable[[], tuple[TrainState, nnx.Module]]:
    """Returns a function that makes the model and its initial training state."""

    def init() -> tuple[TrainState, nnx.Module]:
        model = make_model(ParameterRngs(seed))
        parameters, statistics = map(nnx.to_pure_dict, nnx.state(model, nnx.Param, nnx.BatchStat))
        average = jax.tree.map(jnp.copy, parameters) if ema_decay else None
        state = TrainState(
            jnp.zeros((), jnp.int32),
            parameters,
            optimizer.init(parameters),
            average,
            statistics,
            cast(Any, model).init_state(carried_rows) if carried_rows else None,
        )
        return state, model

    return init


def state_specs(mesh: Mesh | AbstractMesh, state: TrainState, declared: Any) -> TrainState:
    """Returns the PartitionSpec of each array: `placement.specs`, and rows of the carried state.

    Args:
      mesh: mesh with the axes of `sharding.mesh`.
      state: arrays or their shapes.
      declared: `nn.parameters.declarations` of the parameters.
    """
    whole = placement.specs(mesh, state._replace(carried=None), declared)
    rows = PartitionSpec(RULES["rows"])
    return whole._replace(carried=jax.tree.map(lambda _: rows, state.carried))


def _shardings(mesh: Mesh, state: TrainState, model: nnx.Module) -> Any:
    specs = state_specs(mesh, state, declarations(model))
    return jax.tree.map(functools.partial(NamedSharding, mesh), specs)


def init_state(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    carried_rows: int = 0,
    mesh: Mesh | None = None,
) -> TrainState:
    """Initialises the state in one compiled call; all backends and device counts agree.

    Args:
      make_model: makes the model from its random number generators.
      optimizer: the optax transformation.
      seed: seed of the parameters.
      ema_decay: decay of the average of the parameters; 0 for no average.
      carried_rows: rows of the state that a model carries from batch to batch; 0 for no state.
      mesh: mesh over which the state is sharded (`sharding.placement`); the default device if
        None.
    """
    init = _initializer(make_model, optimizer, seed, ema_decay, carried_rows)

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
    carried_rows: int = 0,
    mesh: Mesh,
) -> TrainState:
    """Returns shapes, dtypes and shardings of `init_state` without computing anything."""
    init = _initializer(make_model, optimizer, seed, ema_decay, carried_rows)
    state, model = nnx.eval_shape(init)
    return placement.abstract(state, _shardings(mesh, state, model))
