"""What the trainer, the evaluation and the samplers call of a task."""

import abc
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
from linear_transformer.sharding import data_parallel
from linear_transformer.tasks import evaluation
from linear_transformer.types import Metrics, PRNGKey


class Task(abc.ABC):
    """A model, its data and its loss.

    Attributes:
      headline: the metric that the loop's picture and its terminal line show.
      sequences: the arrays of a batch that devices may share along time.
      no_state: why the task has no stateful evaluation.
      no_prompt: why the task continues no prompt.
      data: the section "data" of the config.
      seed: of parameters and of the order of the data.
    """

    headline: str
    sequences: Sequences = NO_SEQUENCES
    no_state = "each row is an example of its own"
    no_prompt = "this run is not of a language model"

    def __init__(self, config: ml_collections.ConfigDict):
        self.data = config.data
        self.seed = config.seed

    @abc.abstractmethod
    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model with new parameters."""

    def flops_per_example(self, model: Any) -> int:
        """FLOPs of a row of the batch in a forward pass, multiply-adds counted as two."""
        return self.data.sequence_length * model.flops_per_token(self.data.sequence_length)

    @abc.abstractmethod
    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        """Batches of this process without end, with a checkpointable iterator.

        Raises:
          DataError: the processes can't share a batch evenly.
        """

    @abc.abstractmethod
    def loss(self, model: Any, batch: Any, dropout_key: PRNGKey | None) -> Metrics:
        """Sums and counts by name; averages over uneven batches and hosts are then exact.

        The trainer minimises "loss".
        """

    @abc.abstractmethod
    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        """Reported metrics from accumulated sums and counts."""

    @abc.abstractmethod
    def describe(self, model: Any) -> dict[str, str]:
        """Facts for the start of a run: sizes, state, cost, data."""

    @abc.abstractmethod
    def _evaluation_batches(self, split: str) -> Iterator[Batch]:
        """The rows that this process has of every batch of a split (`evaluation.reader`)."""

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Metrics over a split, every example exactly once (or the first `max_batches`).

        Under `jax.set_mesh` the devices of the mesh share the rows of each batch, and every process
        has the metrics of all rows; all processes call it.
        """
        batches = itertools.islice(self._evaluation_batches(split), max_batches)
        return self.summarize(self._total(graphdef, parameters, batches), split)

    def evaluate_stateful(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str
    ) -> dict[str, float]:
        """Metrics over a split with the recurrent state carried through each whole document.

        Raises:
          ConfigError: the task has no such evaluation, or the model's state can't hold a document.
        """
        del graphdef, parameters, split
        raise ConfigError(f"stateful evaluation: {self.no_state}")

    def sample(self, graphdef: nnx.GraphDef, parameters: Any) -> str | None:
        """A short example of what the model does, for the end of a run, or None."""
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
        """Yields the text that continues the prompt, as it is made.

        Raises:
          ConfigError: the task continues no prompt, or the model can't hold so many tokens.
        """
        del graphdef, parameters, prompt, num_tokens, sampler, seed
        raise ConfigError(f"--prompt: {self.no_prompt}")

    def _total(
        self, graphdef: nnx.GraphDef, parameters: Any, batches: Iterator[Batch]
    ) -> dict[str, tuple[float, float]]:
        """Sums and counts of all metrics over these batches, in double precision."""
        sums: dict[str, np.ndarray] = {}
        for batch in batches:
            for name, pair in jax.device_get(self._sums(graphdef, parameters, batch)).items():
                sums[name] = sums.get(name, 0.0) + np.array(pair, np.float64)
        return {name: (float(total), float(count)) for name, (total, count) in sums.items()}

    def _sums(self, graphdef: nnx.GraphDef, parameters: Any, batch: Batch) -> Metrics:
        """Sums and counts of one batch, over the rows of all processes."""
        sums, _ = self.forward(graphdef, parameters, evaluation.put(batch, self.sequences))
        return sums

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def forward(
        self, graphdef: nnx.GraphDef, parameters: Any, batch: dict[str, jax.Array]
    ) -> tuple[Metrics, Any]:
        """`measure` of a batch whose rows the devices share."""

        def measure(parameters, batch):
            return self.measure(nnx.merge(graphdef, parameters), batch)

        declared = declarations(nnx.merge(graphdef, parameters))
        measured = data_parallel.over_devices(measure, declared, self.sequences)
        return measured(parameters, batch)

    def measure(self, model: Any, batch: dict[str, jax.Array]) -> tuple[Metrics, Any]:
        """Sums and counts of an evaluation's batch, and what the host needs of each row."""
        return self.loss(model, batch, None), None
