"""Synthetic sequences: cross entropy and accuracy of the weighted tokens."""

import itertools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from linear_transformer.data.errors import DataError
from linear_transformer.data.share import share_of
from linear_transformer.data.stream import Batch, Sequences
from linear_transformer.data.synthetic.generators import (
    Generator,
    evaluation_sequences,
    make_generator,
    require_length,
    training_sequences,
)
from linear_transformer.data.synthetic.mad import Compression
from linear_transformer.models.compressor import Compressor
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.ops import sequence_parallel
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.language_modelling import negative_log_likelihood
from linear_transformer.tasks.token_task import TokenTask
from linear_transformer.types import Metrics, PRNGKey

# Limit of one evaluation beyond the training length, which then has fewer examples.
_MOST_TOKENS = 2**22


def _pairs(settings: Any, key: str) -> list[tuple[int, Any]]:
    """Returns pairs (length, value); in a config that was read from a file, they are lists."""
    many = (list, tuple)
    if not isinstance(settings, many) or not all(
        isinstance(s, many) and len(s) == 2 and isinstance(s[0], int) for s in settings
    ):
        raise DataError(f"{key} = {settings}: must be ((length, value), (length, value), ...)")
    return [(length, value) for length, value in settings]


class Synthetic(TokenTask):
    """The task of every config with `task = "synthetic"`; `config.data.dataset` is a generator.

    Evaluations are at the training length, at each of `config.data.evaluation_lengths`, and with
    other options of the generator: `config.data.evaluation_options.pairs = ((64, 8), (128, 32))`
    is an evaluation on 64 tokens with 8 pairs, and another one on 128 tokens with 32 pairs.
    """

    headline = "accuracy"
    sequences = Sequences(("inputs", "targets", "weights"))

    def __init__(self, config: ml_collections.ConfigDict):
        self.generator = make_generator(config.data)
        super().__init__(config, self.generator.vocab_size)
        self._check(self.generator, config.data.sequence_length, "config.data.sequence_length")
        # Generator and length of each evaluation, by the suffix of its metrics.
        self.evaluations: dict[str, tuple[Generator, int]] = {}
        for length in config.data.evaluation_lengths:
            self._check(self.generator, length, "config.data.evaluation_lengths")
            self.evaluations[str(length)] = self.generator, length
        # The key may be missing.
        for option, settings in config.data.get("evaluation_options", {}).items():
            key = f"config.data.evaluation_options.{option}"
            for length, value in _pairs(settings, key):
                generator = self._with_option(option, value, key)
                self._check(generator, length, key)
                self.evaluations[f"length_{length}_{option}_{value}"] = generator, length

    def _with_option(self, option: str, value: Any, key: str) -> Generator:
        try:
            generator = make_generator(self.data, **{option: value})
        except DataError as error:
            raise DataError(f"{key}: {error}") from error
        if generator.vocab_size > self.generator.vocab_size:
            raise DataError(f"{key} = {value}: has more tokens than the model is trained on")
        return generator

    def _check(self, generator: Generator, length: int, key: str) -> None:
        require_length(generator, length, key)
        self.model_config.require_positions(key, length)

    def make_model(self, rngs: nnx.Rngs) -> LanguageModel | Compressor:
        if isinstance(self.generator, Compression):
            return Compressor(self.model_config, rngs=rngs)
        return super().make_model(rngs)

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        return training_sequences(
            self.generator,
            sequence_length=self.data.sequence_length,
            seed=self.seed,
            examples=self.data.training_examples,
            **share_of(self.data.batch_size, process_index, process_count),
        )

    def evaluation_batches(
        self, split: str, generator: Generator | None = None, length: int | None = None
    ) -> Iterator[Batch]:
        """Yields batches; beyond the training length they have fewer rows, but as many tokens."""
        trained: int = self.data.sequence_length
        length = trained if length is None else length
        examples = self.data.evaluation_examples
        if length > trained:
            examples = min(examples, max(_MOST_TOKENS // length, 1))
        return evaluation_sequences(
            self.generator if generator is None else generator,
            split,
            sequence_length=length,
            examples=examples,
            **evaluation.reader(self.rows_at(length)),
        )

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Computes metrics at the training length, `accuracy_at_*` and `sequences_at_*`."""
        metrics = super().evaluate(graphdef, parameters, split, max_batches)
        for name, (generator, length) in self.evaluations.items():
            batches = self.evaluation_batches(split, generator, length)
            sums = self._total(graphdef, parameters, itertools.islice(batches, max_batches))
            values = self.summarize(sums, split)
            for metric in ("accuracy", "sequences"):
                metrics[f"{metric}_at_{name}"] = values[metric]
        return metrics

    def _answers(self, length: int) -> int:
        """Returns an upper bound on the tokens that count in a row of `length` tokens."""
        trained = self.generator, self.data.sequence_length
        pairs = [trained, *self.evaluations.values()]
        return max((g.answers(length) for g, at in pairs if at == length), default=length)

    def flops_per_example(self, model: LanguageModel | Compressor) -> int:
        flops = super().flops_per_example(model)
        if isinstance(model, Compressor):
            return flops
        length = self.data.sequence_length
        return flops - (length - self._answers(length)) * model.flops_of_logits

    def loss(
        self,
        model: LanguageModel | Compressor,
        batch: dict[str, jax.Array],
        dropout_key: PRNGKey | None,
    ) -> Metrics:
        """Returns sums and counts of weighted tokens; `sequences` are examples without an error."""
        inputs_BT, targets_BT, weights_BT = (batch[k] for k in ("inputs", "targets", "weights"))
        options = {}
        answers = self._answers(inputs_BT.shape[1])
        if isinstance(model, Compressor):
            if sequence_parallel.shards() > 1:
                mask_BT = sequence_parallel.in_row(inputs_BT, self.data.sequence_length)
                options = {"mask_BT": mask_BT}
        elif answers < inputs_BT.shape[1] and sequence_parallel.shards() == 1:
            # Few tokens count: no logits for the others.
            places = jax.lax.top_k(weights_BT, answers)[1]
            options = {"places": places}
            targets_BT = jnp.take_along_axis(targets_BT, places, axis=1)
            weights_BT = jnp.take_along_axis(weights_BT, places, axis=1)
        logits_BTE, _ = model(inputs_BT, dropout_key=dropout_key, **options)
        nll_BT = negative_log_likelihood(logits_BTE, targets_BT)
        wrong_BT = weights_BT * (jnp.argmax(logits_BTE, axis=-1) != targets_BT)
        count = weights_BT.sum()
        # Totals over all shards of a row; only the first shard counts the row.
        counted_B, wrong_B = (
            sequence_parallel.total(jnp.sum(x_BT, axis=-1)) > 0 for x_BT in (weights_BT, wrong_BT)
        )
        counted_B &= sequence_parallel.shard() == 0
        solved_B = counted_B & ~wrong_B
        return {
            "loss": (jnp.sum(nll_BT * weights_BT), count),
            "accuracy": (count - wrong_BT.sum(), count),
            "sequences": (solved_B.sum(), counted_B.sum()),
        }

    def describe(self, model: LanguageModel | Compressor) -> dict[str, str]:
        data = {"data": f"{self.data.dataset}, made as it is read"}
        if isinstance(model, Compressor):
            return data | {"parameters": f"{model.num_parameters:,}"}
        return data | super().describe(model)
