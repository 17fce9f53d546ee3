"""Interface of tasks, for training, evaluation and sampling."""

import abc
import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from flax import nnx

from linear_transformer.data.stream import NO_SEQUENCES, Batch, Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.inference.generation import Sampler
from linear_transformer.nn.parameters import declarations
from linear_transformer.sharding.data_parallel import ROWS, WHOLE, Shards
from linear_transformer.tasks import evaluation
from linear_transformer.types import Metrics, PRNGKey


class Task(abc.ABC):
    """Model with its data, its loss and its metrics.

    Attributes:
      headline: name of the metric in the plot and the terminal line of the training loop.
      sequences: arrays of a batch that may be sharded along time.
      carries_state: whether `carried_loss` gives the model's state to the next batch.
      no_state: reason why the task has no stateful evaluation, for the error message.
      no_prompt: reason why the task does not continue prompts, for the error message.
      data: section "data" of the config.
      seed: seed of the parameters and of the order of the data.
    """

    headline: str
    sequences: Sequences = NO_SEQUENCES
    carries_state: bool = False
    no_state = "each row is an example of its own"
    no_prompt = "this run is not of a language model"

    def __init__(self, config: ml_collections.ConfigDict):
        self.data = config.data
        self.seed = config.seed

    @abc.abstractmethod
    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Makes the model with new parameters."""

    def flops_per_example(self, model: Any) -> int:
        """FLOPs of one row of the batch in the forward pass; a multiply-add counts as two."""
        return self.data.sequence_length * model.flops_per_token(self.data.sequence_length)

    @abc.abstractmethod
    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        """Returns an endless dataset of the batches of this process, with iterators to checkpoint.

        Raises:
          DataError: the processes can't share a batch evenly.
        """

    @abc.abstractmethod
    def loss(self, model: Any, batch: Any, dropout_key: PRNGKey | None) -> Metrics:
        """Returns sums and counts by name, which give exact averages over uneven batches and hosts.

        Training minimises "loss".  `dropout_key` is None in evaluation.
        """

    def carried_loss(
        self, model: Any, batch: Any, dropout_key: PRNGKey | None
    ) -> tuple[Metrics, Any]:
        """Does as `loss` from the model's state `batch["state"]`, and returns the next state."""
        raise NotImplementedError

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        """Returns the reported metrics from accumulated sums and counts: by default the means."""
        del split
        return {name: total / max(count, 1) for name, (total, count) in sums.items()}

    @abc.abstractmethod
    def describe(self, model: Any) -> dict[str, str]:
        """Returns facts for the start of a run: sizes, state, cost and data."""

    @abc.abstractmethod
    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """Yields the rows of this process of every batch of a split (`evaluation.reader`)."""

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Computes metrics over a split, each example exactly once (or the first `max_batches`).

        Under `jax.set_mesh`, the devices of the mesh share the rows of each batch, and every
        process gets the metrics of all rows; all processes must call this method.
        """
        batches = itertools.islice(self.evaluation_batches(split), max_batches)
        return self.summarize(self._total(graphdef, parameters, batches), split)

    def metric_names(self, graphdef: nnx.GraphDef, parameters: Any) -> list[str]:
        """Returns the names in `evaluate`, from the shapes of a batch; nothing is compiled."""

        def named(graphdef: nnx.GraphDef, parameters: Any, batch: Batch) -> Any:
            def sums(parameters: Any, batch: dict[str, jax.Array]) -> Metrics:
                return self.measure(nnx.merge(graphdef, parameters), batch)[0]

            return dict.fromkeys(jax.eval_shape(sums, parameters, batch), (0.0, 1.0))

        task: Any = copy.copy(self)
        task._sums = named
        return list(task.evaluate(graphdef, parameters, "validation", 1))

    def evaluate_stateful(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str
    ) -> dict[str, float]:
        """Computes metrics over a split, with the recurrent state carried through whole documents.

        Raises:
          ConfigError: the task has no such evaluation, or the model's state can't hold a document.
        """
        del graphdef, parameters, split
        raise ConfigError(f"stateful evaluation: {self.no_state}")

    def sample(self, graphdef: nnx.GraphDef, parameters: Any) -> str | None:
        """Returns a short sample of the model's output for the end of a run, or None."""
        del graphdef, parameters
        return None

    def stream(
        self,
        graphdef: nnx.GraphDef,
        parameters: Any,
        prompt: str,
        num_tokens: int,
        sampler: Sampler,
        seed: int,
    ) -> Iterator[str]:
        """Yields the text that continues the prompt, as it is generated.

        Raises:
          ConfigError: the task does not continue prompts, or there are more tokens than the model's
            capacity.
        """
        del graphdef, parameters, prompt, num_tokens, sampler, seed
        raise ConfigError(f"--prompt: {self.no_prompt}")

    def _total(
        self, graphdef: nnx.GraphDef, parameters: Any, batches: Iterator[Batch]
    ) -> dict[str, tuple[float, float]]:
        """Adds up sums and counts of all metrics over batches, in double precision."""
        sums: dict[str, np.ndarray] = {}
        for batch in batches:
            for name, pair in jax.device_get(self._sums(graphdef, parameters, batch)).items():
                sums[name] = sums.get(name, 0.0) + np.array(pair, np.float64)
        return {name: (float(total), float(count)) for name, (total, count) in sums.items()}

    def _sums(self, graphdef: nnx.GraphDef, parameters: Any, batch: Batch) -> Metrics:
        """Computes sums and counts of one batch, over the rows of all processes."""
        sums, _ = self.forward(graphdef, parameters, evaluation.put(batch, self.sequences))
        return sums

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def forward(
        self, graphdef: nnx.GraphDef, parameters: Any, batch: dict[str, jax.Array]
    ) -> tuple[Metrics, Any]:
        """Computes `measure` for a batch with rows sharded over devices."""

        declared = declarations(nnx.merge(graphdef, parameters))
        shards = Shards(parameters, declared, batch, self.sequences)

        def measure(parameters, batch):
            model = nnx.merge(graphdef, shards.marked(parameters))
            sums, rows = self.measure(model, batch)
            return shards.total(sums), rows

        measured = shards.mapped(measure, (shards.parameters, shards.batch), (WHOLE, ROWS))
        return measured(parameters, batch)

    def measure(self, model: Any, batch: dict[str, jax.Array]) -> tuple[Metrics, Any]:
        """Returns sums and counts of an evaluation batch, and arrays per row for the host."""
        return self.loss(model, batch, None), None
