"""Optimizers and learning-rate schedules by config."""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from linear_transformer.errors import ConfigError

SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What `config.optimizer` holds.

    Attributes:
      name: any optimizer of optax that takes a learning rate: "adamw", "adam", "radam", "lion",
        "adafactor", ...; decoupled weight decay, where it has one, is for matrices only.
      learning_rate: the peak.
      options: other arguments of the optimizer, such as {"b2": 0.95}.
      schedule: after the linear warm-up, "constant"; "cosine" or "linear" down to
        `final_fraction` of the peak at the last step; "rsqrt", with the inverse square root of
        the step (Vaswani et al. 2017); "step", times `step_factor` at each of `step_boundaries`.
      warmup_steps: steps of linear warm-up from 0.
      clip_norm: bound of the global gradient norm; 0 leaves gradients alone.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    schedule: str = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    step_boundaries: tuple[int, ...] = ()
    step_factor: float = 0.1
    clip_norm: float = 0.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"config.optimizer.schedule is {self.schedule!r}; choose one of "
                f"{', '.join(SCHEDULES)}"
            )
        make = getattr(optax, self.name, None)
        arguments = inspect.signature(make).parameters if callable(make) else ()
        if "learning_rate" not in arguments:
            raise ConfigError(
                f"config.optimizer.name is {self.name!r}; optax has no such optimizer"
            )


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step."""
    peak, warmup = config.learning_rate, config.warmup_steps
    remaining = max(num_steps - warmup, 1)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, remaining, config.final_fraction)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, config.final_fraction * peak, remaining)
    elif config.schedule == "rsqrt":
        start = max(warmup, 1)

        def decay(step):
            return peak * (start / (start + jnp.maximum(step, 0))) ** 0.5
    elif config.schedule == "step":
        boundaries = {b - warmup: config.step_factor for b in config.step_boundaries}
        decay = optax.piecewise_constant_schedule(peak, boundaries)
    else:
        decay = optax.constant_schedule(peak)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def _is_matrix(path: tuple[Any, ...]) -> bool:
    """Kernels and embeddings decay, biases and norm scales do not, stacked or not."""
    return path[-1].key in ("kernel", "embedding")


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    schedule = make_schedule(config, num_steps)
    make = getattr(optax, config.name)
    options = dict(config.options)
    if config.weight_decay:
        options["weight_decay"] = config.weight_decay
        options["mask"] = lambda parameters: jax.tree_util.tree_map_with_path(
            lambda path, _: _is_matrix(path), parameters
        )
    elif "weight_decay" in inspect.signature(make).parameters:
        options.setdefault("weight_decay", 0.0)  # optax's own default isn't 0 everywhere
    try:
        optimizer = make(schedule, **options)
    except TypeError as error:
        raise ConfigError(
            f"config.optimizer: optax.{config.name} does not take these options ({error})"
        ) from error
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
