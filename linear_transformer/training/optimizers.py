"""Optimizers and learning-rate schedules, built from a config."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from linear_transformer.config import schema
from linear_transformer.config.schema import (
    COUNT,
    COUNT_OR_0,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_ONE,
    Range,
)
from linear_transformer.errors import ConfigError
from linear_transformer.nn.parameters import Declaration

SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "step")
_WITH_END = ("cosine", "linear")

# Arguments of optimizers that other config keys set, or that a config cannot express.
_NO_OPTIONS = (
    *("learning_rate", "weight_decay", "mask", "weight_decay_mask", "args", "kwargs"),
    *("muon_weight_dimension_numbers", "linesearch"),
)
_OPTION_RANGES = {
    **dict.fromkeys(("b1", "b2", "b3", "adam_b1", "adam_b2", "momentum", "decay"), FRACTION),
    **dict.fromkeys(("eps", "eps_root", "adam_eps_root", "adam_weight_decay"), NOT_NEGATIVE),
    "beta": UP_TO_ONE,
    "ns_steps": POSITIVE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Keys of `config.optimizer`.

    Attributes:
      name: any optimizer of optax or optax.contrib that takes a learning rate, such as "adamw",
        "adam", "radam", "lion" or "muon" (the group "matrix" by Muon, the rest by Adam).
      learning_rate: peak of the learning rate.
      weight_decay: weight decay, decoupled from the gradient (Loshchilov & Hutter 2019), for the
        parameters that declare it (`nn.parameters`): kernels and embeddings.
      options: other arguments of the optimizer, such as {"b2": 0.95}.
      schedule: learning rate after the linear warm-up: "constant"; "cosine" or "linear" down to
        `final_fraction` of the peak at the last step; "rsqrt", the inverse square root of the
        step (Vaswani et al. 2017); "step", times `step_factor` at each of `step_boundaries`.
      schedule_steps: steps of warm-up and schedule, after which the rate stays constant; 0 is
        `config.num_steps`. A run can be made longer only if this key is set, or if neither
        schedule nor warm-up depends on the number of steps.
      warmup_steps: steps of linear warm-up from 0; None is `warmup_fraction` of the schedule.
      warmup_fraction: share of the schedule that the warm-up takes if `warmup_steps` is None.
      final_fraction: learning rate at the last step, divided by the peak.
      step_boundaries: steps at which the schedule "step" changes the rate.
      step_factor: factor by which the schedule "step" multiplies the rate.
      clip_norm: bound of the global gradient norm; 0 does not clip.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    schedule: str = "cosine"
    schedule_steps: int = 0
    warmup_steps: int | None = 0
    warmup_fraction: float = 0.0
    final_fraction: float = 0.1
    step_boundaries: tuple[int, ...] = ()
    step_factor: float = 0.1
    clip_norm: float = 0.0

    CHOICES: ClassVar[Mapping[str, Any]] = {"schedule": SCHEDULES}
    RANGES: ClassVar[Mapping[str, Range]] = {
        **dict.fromkeys(
            ("learning_rate", "weight_decay", "step_factor", "clip_norm"), NOT_NEGATIVE
        ),
        **dict.fromkeys(("schedule_steps", "warmup_steps"), COUNT_OR_0),
        **dict.fromkeys(("warmup_fraction", "final_fraction"), UP_TO_ONE),
        "step_boundaries": COUNT,
    }

    def __post_init__(self):
        schema.check(self, "optimizer")
        known = optimizer_options(self.name)
        for option, value in self.options.items():
            key = f"config.optimizer.options.{option}"
            if option not in known:
                raise schema.unknown(key, known)
            schema.check_type(value, option_type(known[option]), key)
            if type(value) in (int, float):
                schema.check_range(value, _OPTION_RANGES.get(option, FINITE), key)
        if self.schedule_steps and not self._ends():
            raise ConfigError(
                f"config.optimizer.schedule_steps is {self.schedule_steps}; it must be 0, the "
                f"{self.schedule} schedule has no end"
            )

    def _ends(self) -> bool:
        """Returns whether the learning rate depends on the number of steps."""
        decays = self.schedule in _WITH_END and self.final_fraction != 1
        return decays or (self.warmup_steps is None and self.warmup_fraction > 0)

    def end(self, num_steps: int) -> int | None:
        """Returns the last step of the schedule in a run of `num_steps`; None if it has no end."""
        return (self.schedule_steps or num_steps) if self._ends() else None

    def warmup(self, num_steps: int) -> int:
        """Returns the number of warm-up steps in a run of `num_steps`."""
        if self.warmup_steps is None:
            return math.floor(self.warmup_fraction * (self.end(num_steps) or 0) + 1e-6)
        return self.warmup_steps


def optimizer_options(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments of an optimizer that `config.optimizer.options` may set.

    Raises:
      ConfigError: optax has no such optimizer.
    """
    make = find_optimizer(name)
    arguments = inspect.signature(make).parameters if callable(make) else {}
    if "learning_rate" not in arguments:
        raise ConfigError(f"config.optimizer.name is {name!r}; optax has no such optimizer")
    return {key: value for key, value in arguments.items() if key not in _NO_OPTIONS}


def option_type(parameter: inspect.Parameter) -> Any:
    """Returns the type of an optimizer's option, inferred from its default value."""
    if parameter.name in _OPTION_RANGES and parameter.default is None:
        return float | None
    kind = type(parameter.default)
    return kind if kind in (bool, int, float, str) else Any


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the function from a step to its learning rate."""
    peak, warmup = config.learning_rate, config.warmup(num_steps)
    remaining = max((config.end(num_steps) or 0) - warmup, 1)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, remaining, config.final_fraction)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, config.final_fraction * peak, remaining)
    elif config.schedule == "rsqrt":
        start = max(warmup, 1)

        def rsqrt(step):
            return peak * (start / (start + jnp.maximum(step, 0))) ** 0.5

        decay = rsqrt
    elif config.schedule == "step":
        boundaries = {b - warmup: config.step_factor for b in config.step_boundaries}
        decay = optax.piecewise_constant_schedule(peak, boundaries)
    else:
        decay = optax.constant_schedule(peak)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def _muon_axes(declaration: Declaration) -> optax.contrib.MuonDimensionNumbers | None:
    """Returns the two axes that Muon orthogonalises; None for parameters that Adam updates."""
    is_matrix = declaration.group == "matrix"
    return optax.contrib.MuonDimensionNumbers(-2, -1) if is_matrix else None


def find_optimizer(name: str) -> Callable[..., optax.GradientTransformation] | None:
    """Returns the function of optax or optax.contrib with this name; None if there is none."""
    return getattr(optax, name, None) or getattr(optax.contrib, name, None)


def make_optimizer(
    config: OptimizerConfig, num_steps: int, declared: Any
) -> optax.GradientTransformation:
    """Makes the optimizer of a config, for parameters of one structure.

    Args:
      config: name of the optimizer, its schedule, weight decay and clipping.
      num_steps: number of steps of the run.
      declared: `nn.parameters.declarations` of the parameters.

    Raises:
      ConfigError: the optimizer does not exist, or it does not accept the options.
    """
    decayed = jax.tree.map(lambda declaration: declaration.weight_decay, declared)
    schedule = make_schedule(config, num_steps)
    make = find_optimizer(config.name)
    if make is None:
        raise ConfigError(f"config.optimizer.name is {config.name!r}; optax has no such optimizer")
    arguments = inspect.signature(make).parameters
    options = dict(config.options)
    decay = None
    if config.weight_decay and "weight_decay" not in arguments:
        # Decoupled, as in AdamW: the schedule scales both the update (at rate 1) and the decay.
        decay = optax.chain(
            optax.add_decayed_weights(-config.weight_decay, decayed),
            optax.scale_by_schedule(schedule),
        )
        schedule = 1.0
    elif config.weight_decay:
        mask = "weight_decay_mask" if "weight_decay_mask" in arguments else "mask"
        options["weight_decay"] = config.weight_decay
        options[mask] = decayed
    elif "weight_decay" in arguments:
        options["weight_decay"] = 0.0  # some optimizers of optax have another default
    if "muon_weight_dimension_numbers" in arguments:
        options["muon_weight_dimension_numbers"] = jax.tree.map(_muon_axes, declared)
    try:
        optimizer = make(schedule, **options)
    except (TypeError, ValueError) as error:
        raise _refused(config, error) from error
    if decay is not None:
        optimizer = optax.chain(optimizer, decay)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


def check_options(config: OptimizerConfig, num_steps: int, declared: Any, parameters: Any) -> None:
    """Traces an update by shapes alone, where optax first reads some of its options.

    The update is that of one parameter of each kind; a trace of all of them takes seconds.

    Args:
      config, num_steps, declared: arguments of `make_optimizer`.
      parameters: shapes of the parameters, in the structure of `declared`.

    Raises:
      ConfigError: an option has no meaning.
    """
    pairs = zip(jax.tree.leaves(declared), jax.tree.leaves(parameters), strict=True)
    kinds = {f"{declaration}, {p.ndim} axes": (declaration, p) for declaration, p in pairs}
    optimizer = make_optimizer(config, num_steps, {kind: d for kind, (d, _) in kinds.items()})
    parameters = {kind: p for kind, (_, p) in kinds.items()}
    try:
        jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), parameters)
    except Exception as error:  # optax checks some options by name, and fails at others
        raise _refused(config, error) from error


def _refused(config: OptimizerConfig, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError(
        f"config.optimizer.options: optax.{config.name} does not take these options ({reason})"
    )
