"""Training loop: resume, step, log, evaluate, save checkpoints, stop."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from linear_transformer.data.io.fingerprint import fingerprints
from linear_transformer.data.pipeline import skip_batches
from linear_transformer.errors import ConfigError, RunError
from linear_transformer.runtime import distributed
from linear_transformer.sharding import placement
from linear_transformer.training import agreement, experiment, run_folder
from linear_transformer.training.build import Experiment
from linear_transformer.training.checkpoints import Checkpoints
from linear_transformer.training.folder import check_shared, prepare_run_folder
from linear_transformer.training.lock import FolderLock
from linear_transformer.training.metrics import MetricWriter, plot_loss
from linear_transformer.training.speed import Speed
from linear_transformer.training.state import TrainState
from linear_transformer.training.stop import NOTHING_UNSAVED, Interrupted, Stop
from linear_transformer.training.stop_condition import StopCondition
from linear_transformer.training.tracer import Tracer

_LONG_SECONDS = 10  # before an evaluation that takes longer, the loop saves a checkpoint


class NonFiniteLossError(RunError):
    """Error: the loss, the gradient or a parameter is infinite or NaN."""


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def train(
    config: ml_collections.ConfigDict, workdir: epath.Path, tracer: Tracer | None = None
) -> TrainState:
    """Trains to `config.num_steps` from the newest checkpoint in `workdir`, or from the start.

    On SIGINT, SIGTERM or SIGHUP the function saves a checkpoint and returns early; if its lines
    cannot be printed any more, it saves one and raises. With several processes, all of them call
    it; process 0 alone writes and traces.

    Args:
      config: config of the experiment.
      workdir: folder of the run.
      tracer: records a profile of some steps; None for no profile.

    Returns:
      The state after the last step.

    Raises:
      UserError: config, data or folder have a mistake (raised before anything is compiled), or
        the processes were started with different arguments.
      NonFiniteLossError: a value became infinite or NaN; the message names the step.
      RunError: the folder can't be written any more.
      OSError: the output can't be written any more.
      Interrupted: a signal came while nothing was unsaved; a SystemExit with status 0.
    """
    config = experiment.resolve(config)
    lock = FolderLock(workdir)
    with Stop() as stop:
        try:
            return _train(config, workdir, lock, tracer, stop)
        except Interrupted:
            print(f"{stop.received}: {NOTHING_UNSAVED}", flush=True)
            raise
        finally:
            lock.release()


def _train(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    lock: FolderLock,
    tracer: Tracer | None,
    stop: Stop,
) -> TrainState:
    started = time.perf_counter()
    distributed.check_joined()
    if distributed.has_others():
        distributed.agree(agreement.process_settings(config, workdir))
    built, found = distributed.run_together(lambda: _build(config))
    task, mesh = built.task, built.mesh
    distributed.agree(found)
    data = iter(task.training_data(*placement.readers(mesh)))
    distributed.run_on_first(lambda: prepare_run_folder(config, workdir, lock, found))
    check_shared(workdir)

    for name, fact in task.describe(built.model).items():
        print(f"{name + ':':12} {fact}", flush=True)
    devices = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items() if size > 1)
    print(
        f"{'device:':12} {mesh.size} x {jax.devices()[0].device_kind}"
        + (f" ({devices})" if devices else ""),
        flush=True,
    )

    print(f"{'compiling:':12} the initial state", flush=True)
    state = built.init_state()
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    speed = Speed(config, task.flops_per_example(built.model) * config.data.batch_size, mesh)
    loop = _Loop(built, workdir, data, checkpoints, tracer, stop, lock, speed)
    try:
        restored = checkpoints.restore(state)
        if restored is not None:
            state, progress = restored
            loop.resume(progress)
            if loop.step > config.num_steps:
                raise ConfigError(
                    f"config.num_steps is {config.num_steps}; the run in {workdir} is already at "
                    f"step {loop.step}; for a new run, add --workdir={run_folder.free(workdir)}"
                )
            print(f"{'resumed:':12} step {loop.step} of {config.num_steps}", flush=True)
        state = loop.run(state, built.train_step())
        if loop.complete:
            loop.finish(state, time.perf_counter() - started)
    finally:
        loop.close()
    return state


def _build(config: ml_collections.ConfigDict) -> tuple[Experiment, dict[str, str]]:
    """Builds the experiment and the fingerprints of its data."""
    built = Experiment(config)
    StopCondition(config.stop_when).require_metric(built.metric_names)
    return built, fingerprints(config.data, built.task)


class _Loop:
    """Host side of training: progress of the run, logging, evaluation and checkpoints."""

    def __init__(
        self,
        built: Experiment,
        workdir,
        data,
        checkpoints: Checkpoints,
        tracer: Tracer | None,
        stop: Stop,
        lock: FolderLock,
        speed: Speed,
    ):
        self.built = built
        self.config = built.config
        self.task = built.task
        self.mesh = built.mesh
        self.workdir = workdir
        self.data: Any = data
        self.checkpoints = checkpoints
        self.tracer = tracer if distributed.is_first() else None
        self.step = self.saved = 0
        self.sums: dict[str, list[float]] = {}  # since the last log line
        self.pending = None  # metrics of the previous step, fetched while the next one runs
        self.writer: MetricWriter | None = None
        self.stop = stop
        self.lock = lock
        self.speed = speed
        self.evaluation_seconds = float("inf")  # time of the last evaluation; the first compiles
        self.stop_when = StopCondition(built.config.stop_when)

    def resume(self, progress: dict[str, Any]) -> None:
        self.step = self.saved = progress["step"]
        self.sums = {name: list(pair) for name, pair in progress["sums"].items()}
        states = progress["data"]  # one iterator state per part of the rows
        if isinstance(states, dict):  # older checkpoints hold a single state
            states = [states]
        part, parts = placement.readers(self.mesh)
        if len(states) == parts:
            self.data.set_state(states[part])
        elif self.task.carries_state:
            raise ConfigError(
                "config.data.packing is 'carried'; the rows were read in "
                f"{len(states)} parts before, and now in {parts}"
            )
        else:
            skip_batches(self.data, self.step)

    def run(self, state: TrainState, step_fn) -> TrainState:
        config = self.config
        if distributed.is_first():
            with self._writing():
                self.writer = MetricWriter(self.workdir, self.step)
            self.stop_when.met = self.writer.has(self.step, "validation", self.stop_when.entry)
        self.stop_when.met = distributed.gather(self.stop_when.met)[0]
        self._evaluate_if_missed(state)
        compiled = stopped = False
        while not (self.complete or stopped):
            if self.tracer is not None:
                self.tracer.at(self.step, state)
            batch = self._next_batch()
            if batch is None:
                stopped = True
                break
            annotation = jax.profiler.StepTraceAnnotation("train", step_num=self.step)
            with annotation, jax.set_mesh(self.mesh):
                if compiled:
                    state, metrics = step_fn(state, batch)
                else:
                    state, metrics = self._compile(step_fn, state, batch)
                    compiled = True
            self._settle()
            self.step += 1
            self.pending = (self.step, metrics)
            last = self.step == config.num_steps
            if self.step % config.log_every == 0 or last:
                self._settle()
                self._log()
            stopped = not last and self.stop.requested()
            if self.step % config.eval_every == 0 and not (last or stopped):
                self._evaluate_and_go_on(state)
                if self.stop_when.met:
                    self._settle()
                    self._log()
            if self.step % config.checkpoint_every == 0 or self.complete:
                self._save(state)
        if stopped:
            self._save(state)
            self.stop.report(f"saved step {self.step}; the same command goes on from there")
        return state

    @property
    def complete(self) -> bool:
        return self.step == self.config.num_steps or self.stop_when.met

    def _next_batch(self) -> Any:
        """Returns the next batch; None if a signal came during a long wait for data."""
        self.stop.reading(True)
        try:
            batch = next(self.data)
        except Interrupted:
            if self.step == self.saved:
                raise
            self.data = None  # its position is unknown; a resumed run skips batches by steps
            return None
        finally:
            self.stop.reading(False)
        if self.mesh.size > 1:
            batch = placement.put_batch(self.mesh, batch, self.task.sequences)
        return batch

    def _compile(self, step_fn, state: TrainState, batch: Any):
        """Runs the first step, which compiles, and prints how long it took."""
        print(f"{'compiling:':12} the training step", flush=True)
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step_fn(state, batch))
        self.stop.unsaved()
        self.speed.restart(steps=-1)
        self.stop.say(f"{'compiled:':12} in {time.perf_counter() - began:.1f} s")
        return state, metrics

    def finish(self, state: TrainState, seconds: float) -> None:
        """Evaluates for the last time, plots the loss and prints a summary."""
        self.stop.nothing_unsaved()
        lines = [f"trained to step {self.step} in {seconds:.0f} s"]
        if self.config.final_evaluation:
            metrics = self._evaluate(state, None)
            lines.append(f"validation {_format(metrics)}")
        if distributed.is_first():
            with self._writing():
                plot_loss(self.workdir, self.task.headline)
        lines.append(f"saved in {self.workdir}: checkpoints/, metrics.jsonl, loss.png")
        if self.config.sample:
            sample = self.task.sample(self.built.graphdef, distributed.whole(state.evaluated))
            if sample is not None:
                print(f"--- sample\n{sample}\n---", flush=True)
        print("\n".join(lines), flush=True)

    def close(self) -> None:
        if self.tracer is not None:
            self.tracer.stop()
        if self.writer is not None:
            self.writer.close()
        self.checkpoints.close()

    def _settle(self) -> None:
        if self.pending is not None:
            self._collect(*self.pending)
            self.pending = None

    def _collect(self, step: int, metrics) -> None:
        """Fetches the metrics of a step and adds them to the sums since the last log line."""
        for name, (total, count) in jax.device_get(metrics).items():
            if not np.isfinite(total):
                raise NonFiniteLossError(
                    f"{name} is {total} at step {step}; the last checkpoint in {self.workdir} "
                    "is from before it"
                )
            window = self.sums.setdefault(name, [0.0, 0.0])
            window[0] += float(total)
            window[1] += float(count)
        self.speed.count()

    def _log(self) -> None:
        speeds, text = self.speed.report(self.config.num_steps - self.step)
        rate = {"learning_rate": np.asarray(self.built.schedule(self.step - 1)).item()}
        self.speed.restart()
        sums = {name: (total, count) for name, (total, count) in self.sums.items()}
        values = self.task.summarize(sums, "train")
        self.sums = {}
        self._write("train", values | rate | speeds)
        headline = self.task.headline
        self.stop.say(
            f"step {self.step:>6}  loss {values['loss']:.4f}  {headline} {values[headline]:.4f}"
            + text
        )

    def _write(self, split: str, values: dict[str, float]) -> None:
        if self.writer is not None:
            with self._writing():
                self.writer.write(self.step, split, values)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of writing into a RunError; raises one if the folder is gone."""
        self.lock.check()
        try:
            yield
        except (OSError, RunError) as error:
            self.lock.check()  # the folder may have been removed meanwhile
            if isinstance(error, RunError):
                raise
            newest = f"the newest checkpoint in {self.workdir} is of step {self.saved}"
            raise RunError(
                f"{error.filename or self.workdir}: cannot be written ({error.strerror}) at step "
                f"{self.step}; {newest if self.saved else 'no checkpoint was saved yet'}"
            ) from error

    def _evaluate_if_missed(self, state: TrainState) -> None:
        """Evaluates at the start if the run ended between a checkpoint and its evaluation."""
        writer = self.writer
        missed = writer is not None and not writer.has(self.step, "validation")
        due = self.step and self.step % self.config.eval_every == 0
        if due and self.step < self.config.num_steps and distributed.gather(missed)[0]:
            self._evaluate(state, self.config.eval_batches)

    def _evaluate_and_go_on(self, state: TrainState) -> None:
        """Evaluates during training; saves a checkpoint first if the evaluation takes long.

        A signal may then end the process at any moment of the evaluation or its compilation.
        """
        seconds = distributed.gather(self.evaluation_seconds)[0]
        if seconds <= _LONG_SECONDS:
            self._evaluate(state, self.config.eval_batches)
            return
        self._save(state)
        self.stop.nothing_unsaved()
        self._evaluate(state, self.config.eval_batches)
        self.stop.unsaved()

    def _evaluate(self, state: TrainState, max_batches: int | None) -> dict[str, float]:
        began = time.perf_counter()
        first = self.evaluation_seconds == float("inf")
        if first:
            self.stop.say(f"{'compiling:':12} the evaluation")
        metrics = self.built.evaluate(state.evaluated, "validation", max_batches)
        self.evaluation_seconds = time.perf_counter() - began
        if first:
            self.stop.say(f"{'evaluated:':12} in {self.evaluation_seconds:.1f} s")
        if self.step < self.config.num_steps:
            self.stop_when.check(metrics)
        self._write("validation", metrics | self.stop_when.record)
        self.stop.say(f"step {self.step:>6}  validation {_format(metrics)}")
        self.speed.exclude(self.evaluation_seconds)
        return metrics

    def _save(self, state: TrainState) -> None:
        if self.saved == self.step:
            return
        began = time.perf_counter()
        self._settle()
        self.stop.saving()
        if not _all_finite((state.parameters, state.statistics)):
            raise NonFiniteLossError(
                f"a parameter is not finite after step {self.step}; no checkpoint of it was saved"
            )
        part, parts = placement.readers(self.mesh)
        position = None if self.data is None else self.data.get_state()
        states = dict(distributed.gather([part, position]))
        data = [] if None in states.values() else [states[part] for part in range(parts)]
        progress = {"step": self.step, "sums": self.sums, "data": data}
        with self._writing():
            self.checkpoints.save(self.step, state, progress)
            if self.writer is not None:
                self.writer.flush()
        self.saved = self.step
        self.stop.unsaved()
        self.speed.exclude(time.perf_counter() - began)


def _format(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.6g}" for name, value in metrics.items())
