"""Implementation of eval.py: loads a run from its folder, evaluates it, samples from it."""

import dataclasses
import time
from typing import Any

import jax
import ml_collections
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from linear_transformer.data.io.fingerprint import fingerprints
from linear_transformer.errors import ConfigError, RunError
from linear_transformer.inference.generation import Sampler
from linear_transformer.runtime import distributed, files
from linear_transformer.sharding.mesh import MeshConfig, make_mesh
from linear_transformer.tasks.base import Task
from linear_transformer.training import config_file
from linear_transformer.training.build import Experiment, one_device
from linear_transformer.training.checkpoints import Checkpoints
from linear_transformer.training.folder import check_data


@dataclasses.dataclass(frozen=True)
class Run:
    """Trained model with its task, read from the folder of a run."""

    workdir: epath.Path
    task: Task
    graphdef: nnx.GraphDef
    mesh: Mesh
    parameters: Any
    step: int

    @classmethod
    def load(cls, workdir: epath.Path, *, spread: bool = False) -> "Run":
        """Reads config.json and the newest checkpoint.

        Args:
          workdir: folder of the run.
          spread: whether all devices share the work, as `evaluate` can; samplers use one device.
            With several processes the devices always share the work.

        Raises:
          ConfigError: there is no run, or no checkpoint that can be read, or the data differ from
            the training data.
        """
        config = config_file.load(workdir)
        built = Experiment(config, _make_mesh(config, spread))
        check_data(workdir, config, fingerprints(config.data, built.task))
        checkpoints = Checkpoints(workdir, config.keep_checkpoints, clean=False)
        try:
            restored = checkpoints.restore_evaluated(built.abstract_state())
        finally:
            checkpoints.close()
        if restored is None:
            raise ConfigError(f"--workdir={workdir}: the run has no checkpoint yet")
        return cls(workdir, built.task, built.graphdef, built.mesh, *restored)


def _make_mesh(config: ml_collections.ConfigDict, spread: bool) -> Mesh:
    """Makes the mesh of training if there are enough devices, else a mesh of all devices.

    Batches of an evaluation are filled up, so that their sequences fit any mesh.
    """
    if not spread and not distributed.has_others():
        return one_device()
    try:
        return make_mesh(MeshConfig.from_config(config), 0)
    except ConfigError:
        return make_mesh(MeshConfig(), 0)


def evaluate(run: Run, split: str, *, stateful: bool) -> dict[str, float]:
    """Prints a table and writes `eval-<split>.json`; every token is counted exactly once.

    Raises:
      RunError: the file can't be written; the table has been printed.
    """
    began = time.perf_counter()
    note = None
    with jax.set_mesh(run.mesh):
        metrics = run.task.evaluate(run.graphdef, run.parameters, split)
        if stateful:
            try:
                carried = run.task.evaluate_stateful(run.graphdef, run.parameters, split)
                metrics |= {f"stateful_{name}": value for name, value in carried.items()}
            except ConfigError as error:
                note = str(error)
    seconds = time.perf_counter() - began
    table = Table(title=f"{run.workdir}, step {run.step}, {split} split")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name.replace("_", " "), f"{value:,.4f}" if value < 1e6 else f"{value:,.0f}")
    console = Console()
    console.print(table)
    if note is not None:
        console.print(f"not run: {note}", soft_wrap=True)
    if distributed.is_first():
        path = run.workdir / f"eval-{split}.json"
        record = {"step": run.step, "split": split, "metrics": metrics, "seconds": seconds}
        try:
            files.write_json(path, record)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}); the numbers above are "
                "complete"
            ) from error
    return metrics


def sample(run: Run, prompt: str, num_tokens: int, sampler: Sampler, seed: int) -> None:
    """Streams the prompt and its continuation to the terminal, then prints the speed."""
    print(prompt, end="", flush=True)
    began = time.perf_counter()
    parameters = distributed.whole(run.parameters)
    for text in run.task.stream(run.graphdef, parameters, prompt, num_tokens, sampler, seed):
        print(text, end="", flush=True)
    seconds = time.perf_counter() - began
    print(f"\n--- {num_tokens} tokens in {seconds:.1f} s, compilation included", flush=True)
