"""What tasks on examples of one shape share: sums over batches, and nothing to carry or write."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from linear_transformer.data.stream import NO_SEQUENCES, Batch
from linear_transformer.errors import ConfigError
from linear_transformer.types import Metrics, PRNGKey


class ExampleTask:
    """A task whose batches are rows that have nothing to do with each other.

    A subclass gives `headline`, `make_model`, `training_data`, `loss`, `summarize`, `describe` and
    `_evaluation_batches(split)`.
    """

    sequences = NO_SEQUENCES

    def __init__(self, config: ml_collections.ConfigDict):
        self.data = config.data
        self.seed = config.seed

    def loss(
        self, model: nnx.Module, batch: dict[str, jax.Array], dropout_key: PRNGKey | None
    ) -> Metrics:
        raise NotImplementedError

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        raise NotImplementedError

    def flops_per_example(self, model: Any) -> int:
        """Of examples that are sequences of tokens."""
        return self.data.sequence_length * model.flops_per_token(self.data.sequence_length)

    def _evaluation_batches(self, split: str) -> Iterator[Batch]:
        raise NotImplementedError

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Metrics over a split, every example exactly once."""
        batches = itertools.islice(self._evaluation_batches(split), max_batches)
        return self.summarize(self._total(graphdef, parameters, batches), split)

    def _total(
        self, graphdef: nnx.GraphDef, parameters: Any, batches: Iterator[Batch]
    ) -> dict[str, tuple[float, float]]:
        """Sums and counts of all metrics over these batches."""
        sums: dict[str, np.ndarray] = {}
        for batch in batches:
            for name, pair in jax.device_get(self._sums(graphdef, parameters, batch)).items():
                sums[name] = sums.get(name, 0.0) + np.array(pair, np.float64)
        return {name: tuple(pair) for name, pair in sums.items()}

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _sums(self, graphdef, parameters, batch):
        return self.loss(nnx.merge(graphdef, parameters), batch, None)

    def evaluate_stateful(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str
    ) -> dict[str, float]:
        """Not for this task.

        Raises:
          ConfigError: always.
        """
        del graphdef, parameters, split
        raise ConfigError("stateful evaluation: each row is an example of its own")

    def stream(self, *arguments: Any) -> Iterator[str]:
        """Not for this task.

        Raises:
          ConfigError: always.
        """
        del arguments
        raise ConfigError("--prompt: this run is not of a language model")

    def sample(self, graphdef: nnx.GraphDef, parameters: Any) -> str | None:
        """Nothing to print."""
        del graphdef, parameters
        return None
