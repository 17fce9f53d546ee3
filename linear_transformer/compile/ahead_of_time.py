"""Compiles a run's programs for TPUs that need not exist, and reports their requirements.

libtpu contains the whole compiler, so the program and the memory plan are the same as on the real
machine; numerical results and speed are known only after a run there.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from linear_transformer.compile import compiled_program
from linear_transformer.errors import ConfigError
from linear_transformer.inference import generation
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.ops.pallas import choice
from linear_transformer.runtime import accelerators
from linear_transformer.runtime.accelerators import GIB, Accelerator
from linear_transformer.sharding import placement
from linear_transformer.sharding.mesh import MeshConfig, make_mesh
from linear_transformer.tasks.masked_language_modelling import MaskedLanguageModelling
from linear_transformer.training import experiment
from linear_transformer.training.build import Experiment, training_mesh
from linear_transformer.training.state import TrainState
from linear_transformer.types import Device, Metrics

MEMORY = ("argument", "output", "alias", "temp", "generated_code")


@dataclasses.dataclass(frozen=True)
class Report:
    """Requirements of one compiled program on each device.

    Attributes:
      program: name of the program.
      mesh, accelerator: devices that the program was compiled for.
      tokens: tokens of one call, on all devices together; 0 if they are not counted.
      seconds: time of the compilation.
      memory: bytes by name in MEMORY; an alias is an output in the place of an argument.  Empty if
        the compiler found no plan that fits.
      cost: work of one call, with loops counted as often as they run; None if nothing was compiled.
      counted_once: XLA's own "flops" and "bytes accessed", with the body of each loop once.
      refusal: the compiler's message if the program is too large.
    """

    program: str
    mesh: Mesh
    accelerator: Accelerator
    tokens: int
    seconds: float
    memory: dict[str, int]
    cost: compiled_program.Cost | None
    counted_once: dict[str, float]
    refusal: str | None = None

    @property
    def hbm_bytes(self) -> int:
        """Bytes of HBM on one device, all kinds of memory together."""
        return sum(self.memory.values()) - 2 * self.memory.get("alias", 0)

    @property
    def fits(self) -> bool:
        return self.refusal is None and self.hbm_bytes <= self.accelerator.memory

    @property
    def least_seconds(self) -> tuple[float, float]:
        """Lower bounds of a call's time: by matmuls at the peak rate, and by HBM traffic."""
        if self.cost is None:
            raise ValueError(f"{self.program}: nothing was compiled")
        chip = self.accelerator
        return self.cost.flops / chip.flops, self.cost.hbm_bytes / chip.bandwidth

    def lines(self) -> dict[str, str]:
        """Facts by name, for the terminal."""
        chip = self.accelerator
        axes = " x ".join(f"{size} {axis}" for axis, size in self.mesh.shape.items() if size > 1)
        facts = {
            "program": f"{self.program}, compiled in {self.seconds:.1f} s, not run",
            "device": f"{self.mesh.size} x {chip.name}" + (f" ({axes})" if axes else ""),
        }
        if self.cost is None:
            return facts | {"fits": f"no: {self.refusal}"}
        used = {name: size / GIB for name, size in self.memory.items()}
        by_flops, by_bytes = self.least_seconds
        collectives = [
            f"{kind} {count} x, {_count(float(sent))}bytes"
            for kind, (count, sent) in self.cost.collectives.items()
        ]
        facts |= {
            "HBM": f"{self.hbm_bytes / GIB:.2f} of {chip.memory / GIB:.0f} GiB a device: arguments "
            f"{used['argument']:.2f}, outputs {used['output']:.2f} ({used['alias']:.2f} in the "
            f"place of arguments), temporaries {used['temp']:.2f}, code "
            f"{used['generated_code']:.2f}",
            "matmuls": f"{_count(self.cost.flops)}FLOPs a device: at least {1e3 * by_flops:.4g} ms",
            "HBM traffic": f"{_count(self.cost.hbm_bytes)}bytes a device: at least "
            f"{1e3 * by_bytes:.4g} ms",
            "XLA's count": f"{_count(self.counted_once['flops'])}FLOPs, "
            f"{_count(self.counted_once['bytes accessed'])}bytes, each loop once",
            "collectives": "; ".join(collectives) or "none",
        }
        if self.cost.kernels:
            facts["kernels"] = f"{self.cost.kernels} calls"
        if self.cost.unknown_loops:
            facts["not counted"] = f"{self.cost.unknown_loops} loops of unknown length, taken once"
        if self.tokens:
            bound = self.tokens / max(by_flops, by_bytes)
            facts["bound"] = f"at most {bound:,.0f} tokens/s, {bound / self.mesh.size:,.0f} a chip"
        return facts | {"fits": "yes" if self.fits else "no"}


def _count(number: float) -> str:
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.4g} "


class TrainingStep(NamedTuple):
    """Training step on a mesh, with the shapes of its arguments.

    Attributes:
      step: jitted function, for `jax.set_mesh(mesh)`.
      state: shapes, types and shardings of the first argument.
      batch: shapes, types and shardings of the second argument.
    """

    mesh: Mesh
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]


def training_step(config: ml_collections.ConfigDict, devices: Sequence[Device]) -> TrainingStep:
    """Makes the step that training would run; computes and compiles nothing.

    The data is read for the shapes of its first batch and for its vocabulary.

    Args:
      config: config of the run.
      devices: described devices (`accelerators.describe_devices`), or real ones.

    Raises:
      UserError: a mistake in config or data, or a mesh that the devices cannot make.
    """
    built = Experiment(config, training_mesh(experiment.resolve(config), devices))
    batch = next(iter(built.task.training_data(0, 1)))
    batch = placement.abstract_batch(built.mesh, batch, built.task.sequences)
    return TrainingStep(built.mesh, built.train_step(), built.abstract_state(), batch)


def compile_training_step(config: ml_collections.ConfigDict, devices: Sequence[Device]) -> Report:
    """Compiles the step of `training_step`; arguments and errors are the same."""
    mesh, step, state, batch = training_step(config, devices)
    return _compile("training step", mesh, _tokens(config), lambda: step.lower(state, batch))


def compile_evaluation(config: ml_collections.ConfigDict, devices: Sequence[Device]) -> Report:
    """Compiles the forward pass of a batch of the validation split, on the mesh of training.

    Arguments and errors are those of `training_step`.
    """
    built = Experiment(config, training_mesh(experiment.resolve(config), devices))
    task = built.task
    batch = next(task.evaluation_batches("validation"))
    batch = placement.abstract_batch(built.mesh, batch, task.sequences)
    return _compile(
        "forward pass of an evaluation batch",
        built.mesh,
        _tokens(config),
        lambda: task.forward.lower(task, built.graphdef, built.abstract_state().evaluated, batch),
    )


def compile_decoding_step(config: ml_collections.ConfigDict, devices: Sequence[Device]) -> Report:
    """Compiles the step that decodes one token of each of `data.batch_size` sequences.

    Parameters are sharded as in training; the sequences are spread over the devices.

    Raises:
      UserError: see `training_step`; or the model of the task does not decode.
    """
    rows = config.data.batch_size
    mesh = make_mesh(MeshConfig.from_config(config), rows, devices)
    built = Experiment(config, mesh)
    model = built.model
    if not isinstance(model, LanguageModel) or isinstance(built.task, MaskedLanguageModelling):
        raise ConfigError(
            f"--program=decode: config.task is {config.task!r}; its model has no decoding step"
        )
    by_row = placement.rows_of(mesh)
    state = jax.eval_shape(lambda: model.init_state(rows))
    state = placement.abstract(state, jax.tree.map(lambda _: by_row, state))
    token_B = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_row)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = placement.abstract(key, NamedSharding(mesh, PartitionSpec()))
    parameters = built.abstract_state().evaluated
    return _compile(
        f"decoding step of {rows} rows",
        mesh,
        rows,
        lambda: generation.decode.lower(
            built.graphdef, generation.Sampler(), 1, parameters, state, token_B, key
        ),
    )


def _tokens(config: ml_collections.ConfigDict) -> int:
    return config.data.batch_size * config.data.get("sequence_length", 0)


def _compile(
    program: str, mesh: Mesh, tokens: int, lower: Callable[[], jax.stages.Lowered]
) -> Report:
    device = mesh.devices.flat[0]
    accelerator = accelerators.find(device.device_kind)
    if accelerator is None:
        raise ConfigError(f"{device.device_kind}: not in runtime/accelerators.py")
    began = time.perf_counter()

    def report(**found: Any) -> Report:
        seconds = time.perf_counter() - began
        return Report(program, mesh, accelerator, tokens, seconds, **found)

    with choice.compiling_for(device.platform, mesh.size), jax.set_mesh(mesh):
        lowered = lower()
    try:
        compiled = lowered.compile()
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return report(memory={}, cost=None, counted_once={}, refusal=_refusal(str(error)))
    analysis = compiled.memory_analysis()
    return report(
        memory={name: getattr(analysis, f"{name}_size_in_bytes") for name in MEMORY},
        cost=compiled_program.cost(compiled.as_text() or ""),
        counted_once=compiled.cost_analysis(),
    )


def _refusal(text: str) -> str:
    """Returns the first sentences of the compiler's error, on one line."""
    return " ".join(text.split("Total hbm usage")[0].split())[:300]
