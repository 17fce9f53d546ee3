"""What tasks on generated or pixel sequences share: a causal model, sums over batches."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from linear_transformer import configuration
from linear_transformer.data.stream import Batch
from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModel, LanguageModelConfig
from linear_transformer.training.state import Metrics
from linear_transformer.types import PRNGKey


class TokenTask:
    """A task whose model is a causal `LanguageModel` on rows of one length.

    A subclass gives `headline`, `loss`, `summarize` and `_evaluation_batches(split)`.

    Args:
      config: of the experiment.
      vocab_size: of the model's input.
    """

    def __init__(self, config: ml_collections.ConfigDict, vocab_size: int):
        self.data = config.data
        self.seed = config.seed
        self.model_config: LanguageModelConfig = configuration.build(
            LanguageModelConfig, config.model, "model", vocab_size=vocab_size
        )
        for name in self.model_config.pattern:
            if self.model_config.looks_ahead(name):
                raise ConfigError(
                    f"config.model.mixers.{name}: direction must be causal, else the model sees "
                    "the token that it predicts"
                )

    def make_model(self, rngs: nnx.Rngs) -> LanguageModel:
        return LanguageModel(self.model_config, rngs=rngs)

    def rows_per_process(self, process_count: int) -> int:
        """Rows of a batch that one process reads."""
        if self.data.batch_size % process_count:
            raise ConfigError(
                f"config.data.batch_size ({self.data.batch_size}) is not a multiple of the "
                f"{process_count} processes"
            )
        return self.data.batch_size // process_count

    def loss(
        self, model: LanguageModel, batch: dict[str, jax.Array], dropout_key: PRNGKey | None
    ) -> Metrics:
        raise NotImplementedError

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        raise NotImplementedError

    def _evaluation_batches(self, split: str) -> Iterator[Batch]:
        raise NotImplementedError

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Metrics over a split, every example exactly once."""
        sums: dict[str, np.ndarray] = {}
        for batch in itertools.islice(self._evaluation_batches(split), max_batches):
            for name, pair in jax.device_get(self._sums(graphdef, parameters, batch)).items():
                sums[name] = sums.get(name, 0.0) + np.array(pair, np.float64)
        return self.summarize({name: tuple(pair) for name, pair in sums.items()}, split)

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

    def describe(self, model: LanguageModel) -> dict[str, str]:
        context = self.data.sequence_length
        state = jax.eval_shape(lambda: model.init_state(1)["layers"])
        state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        return {
            "parameters": f"{model.num_parameters:,}",
            "state": f"{state_bytes:,} bytes a sequence when decoding",
            "FLOPs": f"{3 * model.flops_per_token(context):,} per trained token "
            f"at context {context}",
        }
