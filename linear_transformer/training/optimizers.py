"""Optimizers and learning-rate schedules by config."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from linear_transformer.errors import ConfigError

SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "step")
_WITH_END = ("cosine", "linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What `config.optimizer` holds.

    Attributes:
      name: any optimizer of optax or optax.contrib that takes a learning rate: "adamw", "adam",
        "radam", "lion", "muon" (kernels by Muon, the rest by Adam), ...
      learning_rate: the peak.
      weight_decay: decoupled from the gradient (Loshchilov & Hutter 2019), of matrices only.
      options: other arguments of the optimizer, such as {"b2": 0.95}.
      schedule: after the linear warm-up, "constant"; "cosine" or "linear" down to
        `final_fraction` of the peak at its last step; "rsqrt", with the inverse square root of
        the step (Vaswani et al. 2017); "step", times `step_factor` at each of `step_boundaries`.
      schedule_steps: the last step of "cosine" and "linear", after which the rate stays; 0 is
        `config.num_steps`. A run can be made longer only where it is given, or for the others.
      warmup_steps: steps of linear warm-up from 0.
      clip_norm: bound of the global gradient norm; 0 leaves gradients alone.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    schedule: str = "cosine"
    schedule_steps: int = 0
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
        if self.schedule_steps < 0:
            raise ConfigError(
                f"config.optimizer.schedule_steps is {self.schedule_steps}; it must be 0 "
                "(config.num_steps) or more"
            )
        if self.schedule_steps and self.schedule not in _WITH_END:
            raise ConfigError(
                f"config.optimizer.schedule_steps is {self.schedule_steps}; it must be 0, the "
                f"{self.schedule} schedule has no end"
            )
        make = _find(self.name)
        arguments = inspect.signature(make).parameters if callable(make) else ()
        if "learning_rate" not in arguments:
            raise ConfigError(
                f"config.optimizer.name is {self.name!r}; optax has no such optimizer"
            )

    def end(self, num_steps: int) -> int | None:
        """The last step of the schedule in a run of `num_steps`; None where it has none."""
        changes = self.schedule in _WITH_END and self.final_fraction != 1
        return (self.schedule_steps or num_steps) if changes else None


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step."""
    peak, warmup = config.learning_rate, config.warmup_steps
    remaining = max((config.end(num_steps) or 0) - warmup, 1)
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


def _muon_axes(path: tuple[Any, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Muon orthogonalises kernels, each layer of a stack by itself; Adam takes the rest."""
    is_kernel = path[-1].key == "kernel"
    return optax.contrib.MuonDimensionNumbers(-2, -1) if is_kernel else None


def _by_path(choose: Callable[[tuple[Any, ...]], Any], parameters: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: choose(path), parameters)


def _find(name: str) -> Callable[..., optax.GradientTransformation] | None:
    return getattr(optax, name, None) or getattr(optax.contrib, name, None)


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    schedule = make_schedule(config, num_steps)
    make = _find(config.name)
    arguments = inspect.signature(make).parameters
    options = dict(config.options)
    decay = None
    if config.weight_decay and "weight_decay" not in arguments:
        # Decoupled, as in AdamW: updates at rate 1, decayed, then both scaled by the schedule.
        mask = functools.partial(_by_path, _is_matrix)
        decay = optax.chain(
            optax.add_decayed_weights(-config.weight_decay, mask),
            optax.scale_by_schedule(schedule),
        )
        schedule = 1.0
    elif config.weight_decay:
        mask = "weight_decay_mask" if "weight_decay_mask" in arguments else "mask"
        options["weight_decay"] = config.weight_decay
        options[mask] = functools.partial(_by_path, _is_matrix)
    elif "weight_decay" in arguments:
        options.setdefault("weight_decay", 0.0)  # optax's own default isn't 0 everywhere
    if "muon_weight_dimension_numbers" in arguments:
        options["muon_weight_dimension_numbers"] = functools.partial(_by_path, _muon_axes)
    try:
        optimizer = make(schedule, **options)
    except TypeError as error:
        raise ConfigError(
            f"config.optimizer: optax.{config.name} does not take these options ({error})"
        ) from error
    if decay is not None:
        optimizer = optax.chain(optimizer, decay)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
