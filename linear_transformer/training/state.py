"""State of a training run, and its values at step 0."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

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
