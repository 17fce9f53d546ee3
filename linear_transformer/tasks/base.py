"""What the training loop needs of a task."""

from typing import Any, Protocol, runtime_checkable

import grain
from flax import nnx

from linear_transformer.data.stream import Sequences
from linear_transformer.types import Metrics, PRNGKey


@runtime_checkable
class Task(Protocol):
    """A model, its data and its loss.

    Attributes:
      headline: the metric that the loop's picture and its terminal line show.
      sequences: the arrays of a batch that devices may share along time.
    """

    headline: str
    sequences: Sequences

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module: ...

    def flops_per_example(self, model: nnx.Module) -> int:
        """Of a row of the batch in a forward pass, multiply-adds counted as two."""
        ...

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        """Batches without end, with a checkpointable iterator."""
        ...

    def loss(self, model: nnx.Module, batch: Any, dropout_key: PRNGKey | None) -> Metrics:
        """Sums and counts; averages over uneven batches and hosts are then exact."""
        ...

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        """Reported metrics from accumulated sums and counts."""
        ...

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Metrics over a split, every example exactly once (or the first `max_batches`)."""
        ...

    def describe(self, model: nnx.Module) -> dict[str, str]:
        """Facts for the start of a run: sizes, state, cost, data."""
        ...

    def sample(self, graphdef: nnx.GraphDef, parameters: Any) -> str | None:
        """A short example of what the model does, for the end of a run."""
        ...
