"""The training loop: resume, step, log, evaluate, checkpoint, stop."""

import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from linear_transformer import accelerators, configuration, distributed, environment
from linear_transformer.data.pipeline import skip_batches
from linear_transformer.errors import ConfigError
from linear_transformer.tasks.task import Task, make_task
from linear_transformer.training import sharding
from linear_transformer.training.checkpoints import Checkpoints
from linear_transformer.training.lock import FolderLock
from linear_transformer.training.metrics import MetricWriter, plot_loss
from linear_transformer.training.optimizers import OptimizerConfig, make_optimizer
from linear_transformer.training.state import TrainState, init_state, make_train_step
from linear_transformer.training.tracer import Tracer


class NonFiniteLossError(configuration.RunError):
    """The loss, the gradient or a parameter is infinite or not a number."""


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def train(
    config: ml_collections.ConfigDict, workdir: epath.Path, tracer: Tracer | None = None
) -> TrainState:
    """Trains to `config.num_steps` from the newest checkpoint in `workdir`, or from the start.

    SIGTERM saves a checkpoint and returns early. The state returned is that of the last step.
    Several processes all call it; process 0 writes, and the tracer is its own.

    Raises:
      UserError: a mistake in config, data or folder, before anything is compiled.
      NonFiniteLossError: names the step.
    """
    check(config)
    distributed.check_joined()
    lock = FolderLock(workdir)
    try:
        return _train(config, workdir, lock, tracer)
    finally:
        lock.release()


def _train(
    config: ml_collections.ConfigDict, workdir: epath.Path, lock: FolderLock, tracer: Tracer | None
) -> TrainState:
    started = time.perf_counter()
    optimizer_config = configuration.build(OptimizerConfig, config.optimizer, "optimizer")
    optimizer = make_optimizer(optimizer_config, config.num_steps)
    mesh_config = sharding.mesh_config(config)
    mesh = sharding.make_mesh(mesh_config, config.data.batch_size // config.accumulate_steps)
    task = make_task(config)
    sharding.require_sequences(mesh_config, task)
    data = iter(task.training_data(*sharding.readers(mesh)))
    distributed.run_on_first(lambda: _open_folder(config, workdir, lock))
    _check_shared(workdir)

    model = nnx.eval_shape(lambda: task.make_model(nnx.Rngs(config.seed)))
    graphdef = nnx.graphdef(model)
    for name, fact in task.describe(model).items():
        print(f"{name + ':':12} {fact}", flush=True)
    devices = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items() if size > 1)
    print(
        f"{'device:':12} {mesh.size} x {jax.devices()[0].device_kind}"
        + (f" ({devices})" if devices else ""),
        flush=True,
    )

    options = {"seed": config.seed, "ema_decay": config.ema_decay}
    state = init_state(task.make_model, optimizer, mesh=mesh, **options)
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    loop = _Loop(config, workdir, task, graphdef, data, checkpoints, mesh, tracer)
    loop.peak_rate = _peak_rate(task.flops_per_example(model) * config.data.batch_size, mesh)
    try:
        restored = checkpoints.restore(state)
        if restored is not None:
            state, progress = restored
            loop.resume(progress)
            if loop.step > config.num_steps:
                raise ConfigError(
                    f"config.num_steps is {config.num_steps}; the run in {workdir} is already at "
                    f"step {loop.step}"
                )
            print(f"{'resumed:':12} step {loop.step} of {config.num_steps}", flush=True)
        step_fn = make_train_step(
            graphdef,
            task.loss,
            optimizer,
            accumulate_steps=config.accumulate_steps,
            sequences=task.sequences,
            exchange=mesh_config.exchange,
            **options,
        )
        state = loop.run(state, step_fn)
        if loop.step == config.num_steps:
            loop.finish(state, time.perf_counter() - started)
    finally:
        loop.close()
    return state


_POSITIVE_KEYS = (
    "num_steps",
    "log_every",
    "eval_every",
    "eval_batches",
    "checkpoint_every",
    "keep_checkpoints",
    "accumulate_steps",
)


_KEYS = ("task", "seed", "final_evaluation", "sample", "ema_decay", "data", "model", "optimizer")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError where a key of every experiment is missing or out of range."""
    for key in (*_POSITIVE_KEYS, *_KEYS):
        if key not in config:
            raise ConfigError(f"config.{key} is missing; configs/default.py has every key")
    if not 0 <= config.ema_decay < 1:
        raise ConfigError(f"config.ema_decay is {config.ema_decay}; it must be in [0, 1)")
    for key in _POSITIVE_KEYS:
        if config[key] < 1:
            raise ConfigError(f"config.{key} is {config[key]}; it must be positive")
    if config.data.batch_size % config.accumulate_steps:
        raise ConfigError(
            f"config.data.batch_size ({config.data.batch_size}) is not a multiple of "
            f"config.accumulate_steps ({config.accumulate_steps})"
        )


def _peak_rate(flops: int, mesh: Mesh) -> float | None:
    """Steps per second with all arithmetic at the devices' peak; None where it is not known.

    The rate over it is the model FLOPs utilization (MFU; Chowdhery et al. 2022, PaLM, appendix B):
    what the model needs, three forward passes, counts, and no recomputation.

    Args:
      flops: of a forward pass of the batch.
    """
    accelerator = accelerators.find(mesh.devices.flat[0].device_kind)
    return None if accelerator is None else mesh.size * accelerator.flops / (3 * flops)


def _open_folder(config: ml_collections.ConfigDict, workdir: epath.Path, lock: FolderLock) -> None:
    lock.acquire()
    configuration.save(config, workdir)
    environment.save(workdir / environment.FILE)


def _check_shared(workdir: epath.Path) -> None:
    """Raises a ConfigError where processes have folders of their own, unknown to the others."""
    seen = distributed.gather((workdir / "config.json").exists())
    if not all(seen):
        raise ConfigError(
            f"--workdir={workdir}: process {seen.index(False)} does not see what process 0 writes "
            "there; several machines need a folder that they share, such as one in gs://"
        )


class _Loop:
    """The host's side of training: what has been done, and what is reported."""

    def __init__(
        self,
        config,
        workdir,
        task: Task,
        graphdef,
        data,
        checkpoints: Checkpoints,
        mesh: Mesh,
        tracer: Tracer | None,
    ):
        self.config = config
        self.workdir = workdir
        self.task = task
        self.graphdef = graphdef
        self.data = data
        self.checkpoints = checkpoints
        self.mesh = mesh
        self.tracer = tracer if distributed.is_first() else None
        self.step = 0
        self.sums: dict[str, list[float]] = {}  # since the last log line
        self.writer: MetricWriter | None = None
        self.terminated = False
        self.peak_rate: float | None = None  # steps per second at the devices' peak

    def resume(self, progress: dict[str, Any]) -> None:
        self.step = progress["step"]
        self.sums = {name: list(pair) for name, pair in progress["sums"].items()}
        states = progress["data"]  # of the iterators of all parts of the rows
        if isinstance(states, dict):  # saved before there could be several
            states = [states]
        part, parts = sharding.readers(self.mesh)
        if len(states) == parts:
            self.data.set_state(states[part])
        else:
            skip_batches(self.data, self.step)

    def run(self, state: TrainState, step_fn) -> TrainState:
        config = self.config
        if distributed.is_first():
            self.writer = MetricWriter(self.workdir, self.step)
        together = jax.process_count() > 1
        previous = None if together else signal.signal(signal.SIGTERM, self._terminate)
        saved = self.step
        self._window_started, self._window_steps = time.perf_counter(), 0
        pending = None  # metrics of the step before, fetched when the next one is under way
        try:
            while self.step < config.num_steps and not self.terminated:
                if self.tracer is not None:
                    self.tracer.at(self.step, state)
                batch = next(self.data)
                if self.mesh.size > 1:
                    batch = sharding.put_batch(self.mesh, batch, self.task.sequences)
                annotation = jax.profiler.StepTraceAnnotation("train", step_num=self.step)
                with annotation, jax.set_mesh(self.mesh):
                    state, metrics = step_fn(state, batch)
                if pending is not None:
                    self._collect(*pending)
                self.step += 1
                if together and distributed.stop_requested(self.step):
                    self.terminated = True
                pending = (self.step, metrics)
                last = self.step == config.num_steps
                if self.step % config.log_every == 0 or last:
                    self._collect(*pending)
                    pending = None
                    self._log()
                if self.step % config.eval_every == 0 and not last:
                    self._evaluate(state, config.eval_batches)
                if self.step % config.checkpoint_every == 0 or last:
                    if pending is not None:
                        self._collect(*pending)
                        pending = None
                    self._save(state)
                    saved = self.step
            if pending is not None:
                self._collect(*pending)
            if self.terminated and saved != self.step:
                self._save(state)
        finally:
            if not together:
                signal.signal(signal.SIGTERM, previous)
        if self.terminated:
            print(f"SIGTERM: saved step {self.step}; the same command goes on from there")
        return state

    def finish(self, state: TrainState, seconds: float) -> None:
        """The last evaluation, the picture, and a summary."""
        lines = [f"trained to step {self.step} in {seconds:.0f} s"]
        if self.config.final_evaluation:
            metrics = self._evaluate(state, None)
            lines.append(f"validation {_format(metrics)}")
        if distributed.is_first():
            plot_loss(self.workdir, self.task.headline)
        lines.append(f"saved in {self.workdir}: checkpoints/, metrics.jsonl, loss.png")
        if self.config.sample:
            sample = self.task.sample(self.graphdef, distributed.whole(state.evaluated))
            if sample is not None:
                print(f"--- sample\n{sample}\n---", flush=True)
        print("\n".join(lines), flush=True)

    def close(self) -> None:
        if self.tracer is not None:
            self.tracer.stop()
        if self.writer is not None:
            self.writer.close()
        self.checkpoints.close()

    def _terminate(self, signum, frame) -> None:
        del signum, frame
        self.terminated = True

    def _collect(self, step: int, metrics) -> None:
        """Fetches the metrics of a step and adds them to the window."""
        for name, (total, count) in jax.device_get(metrics).items():
            if not np.isfinite(total):
                raise NonFiniteLossError(
                    f"{name} is {total} at step {step}; the last checkpoint in {self.workdir} "
                    "is from before it"
                )
            window = self.sums.setdefault(name, [0.0, 0.0])
            window[0] += float(total)
            window[1] += float(count)
        self._window_steps += 1

    def _log(self) -> None:
        now = time.perf_counter()
        rate = self._window_steps / max(now - self._window_started, 1e-9)
        unit = "tokens" if "sequence_length" in self.config.data else "examples"
        speed = rate * self.config.data.batch_size * self.config.data.get("sequence_length", 1)
        values = self.task.summarize({n: tuple(p) for n, p in self.sums.items()}, "train")
        speeds = {"steps_per_second": rate, f"{unit}_per_second": speed}
        if self.peak_rate is not None:
            speeds["mfu"] = rate / self.peak_rate
        self._write("train", values | speeds)
        eta = (self.config.num_steps - self.step) / rate
        headline = self.task.headline
        print(
            f"step {self.step:>6}  loss {values['loss']:.4f}  {headline} {values[headline]:.4f}  "
            f"{speed:,.0f} {unit}/s  "
            + (f"MFU {100 * speeds['mfu']:.1f} %  " if "mfu" in speeds else "")
            + f"ETA {_duration(eta)}",
            flush=True,
        )
        self.sums = {}
        self._window_started, self._window_steps = now, 0

    def _write(self, split: str, values: dict[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(self.step, split, values)

    def _evaluate(self, state: TrainState, max_batches: int | None) -> dict[str, float]:
        began = time.perf_counter()
        metrics = self.task.evaluate(self.graphdef, state.evaluated, "validation", max_batches)
        self._write("validation", metrics)
        print(f"step {self.step:>6}  validation {_format(metrics)}", flush=True)
        self._window_started += time.perf_counter() - began
        return metrics

    def _save(self, state: TrainState) -> None:
        began = time.perf_counter()
        if not _all_finite(state.parameters):
            raise NonFiniteLossError(
                f"a parameter is not finite after step {self.step}; no checkpoint of it was saved"
            )
        part, parts = sharding.readers(self.mesh)
        states = dict(distributed.gather([part, self.data.get_state()]))
        data = [states[part] for part in range(parts)]
        progress = {"step": self.step, "sums": self.sums, "data": data}
        self.checkpoints.save(self.step, state, progress)
        self._window_started += time.perf_counter() - began


def _format(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.6g}" for name, value in metrics.items())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
