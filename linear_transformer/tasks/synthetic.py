"""Synthetic sequences: cross entropy and accuracy of the tokens that count."""

import itertools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from linear_transformer.data.stream import Batch, rows_per_process
from linear_transformer.data.synthetic import (
    evaluation_sequences,
    make_generator,
    training_sequences,
)
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.tasks.language_modelling import negative_log_likelihood
from linear_transformer.tasks.token_task import TokenTask
from linear_transformer.training.state import Metrics
from linear_transformer.types import PRNGKey


class Synthetic(TokenTask):
    """The task of every config with `task = "synthetic"`; `config.data.dataset` is a generator."""

    headline = "accuracy"

    def __init__(self, config: ml_collections.ConfigDict):
        self.generator = make_generator(config.data)
        super().__init__(config, self.generator.vocab_size)
        longest = max(config.data.evaluation_lengths, default=0)
        self.model_config.require_positions("config.data.evaluation_lengths", longest)

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        return training_sequences(
            self.generator,
            batch_size=rows_per_process(self.data.batch_size, process_count),
            sequence_length=self.data.sequence_length,
            seed=self.seed,
            process_index=process_index,
            process_count=process_count,
        )

    def _evaluation_batches(self, split: str, length: int | None = None) -> Iterator[Batch]:
        return evaluation_sequences(
            self.generator,
            split,
            batch_size=self.data.batch_size,
            sequence_length=self.data.sequence_length if length is None else length,
            examples=self.data.evaluation_examples,
        )

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Metrics at the length of training, and accuracies at `config.data.evaluation_lengths`."""
        metrics = super().evaluate(graphdef, parameters, split, max_batches)
        for length in self.data.evaluation_lengths:
            batches = self._evaluation_batches(split, length)
            sums = self._total(graphdef, parameters, itertools.islice(batches, max_batches))
            metrics[f"accuracy_at_{length}"] = self.summarize(sums, split)["accuracy"]
        return metrics

    def loss(
        self, model: LanguageModel, batch: dict[str, jax.Array], dropout_key: PRNGKey | None
    ) -> Metrics:
        """The mean over weighted tokens; `sequences` are examples without any wrong one."""
        logits_BTE, _ = model(batch["inputs"], dropout_key=dropout_key)
        targets_BT, weights_BT = batch["targets"], batch["weights"]
        nll_BT = negative_log_likelihood(logits_BTE, targets_BT)
        wrong_BT = weights_BT * (jnp.argmax(logits_BTE, axis=-1) != targets_BT)
        count = weights_BT.sum()
        counted_B = jnp.any(weights_BT > 0, axis=-1)
        solved_B = counted_B & ~jnp.any(wrong_BT > 0, axis=-1)
        return {
            "loss": (jnp.sum(nll_BT * weights_BT), count),
            "accuracy": (count - wrong_BT.sum(), count),
            "sequences": (solved_B.sum(), counted_B.sum()),
        }

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        del split
        return {name: total / max(count, 1) for name, (total, count) in sums.items()}

    def describe(self, model: LanguageModel) -> dict[str, str]:
        return {"data": f"{self.data.dataset}, made as it is read"} | super().describe(model)
