"""Classification of sequences or of pairs of sequences: cross entropy and accuracy."""

from collections.abc import Iterator

import grain
import jax
import ml_collections
import numpy as np
from flax import nnx

from linear_transformer.config import configuration
from linear_transformer.data.sequence_batches import (
    evaluation_sequences,
    has_padding,
    load_source,
    training_sequences,
)
from linear_transformer.data.share import share_of
from linear_transformer.data.stream import Batch, Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.models.classifier import Classifier, ClassifierConfig
from linear_transformer.models.matcher import Matcher
from linear_transformer.ops import sequence_parallel
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.base import Task
from linear_transformer.tasks.classification import classification_loss
from linear_transformer.types import Metrics, PRNGKey


class SequenceClassification(Task):
    """The task of every config with `task = "sequence_classification"`.

    An example of the source is one sequence, for a `Classifier`, or a pair, for a `Matcher`.
    """

    headline = "accuracy"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.source = load_source(config.data)
        self.padded = has_padding(self.source)
        sizes = {"vocab_size": self.source.vocab_size, "num_classes": self.source.num_classes}
        self.model_config = configuration.build(ClassifierConfig, config.model, "model", **sizes)
        if self.padded and self.model_config.input == "pixels":
            raise ConfigError(
                f"config.model.input is 'pixels', and {self.source.name} is text; use 'tokens'"
            )
        length, key = config.data.sequence_length, "config.data.sequence_length"
        num_prefix_tokens = 0
        if self.model_config.pooling == "cls":
            num_prefix_tokens, key = 1, f"{key} and the cls token"
        self.model_config.require_positions(key, length + num_prefix_tokens)
        axis = 1 if self.source.sequences_per_example == 1 else 2  # (B, T) or (B, 2, T)
        self.sequences = Sequences(("inputs",), axis, num_prefix_tokens)

    def make_model(self, rngs: nnx.Rngs) -> Classifier | Matcher:
        make = Classifier if self.source.sequences_per_example == 1 else Matcher
        return make(self.model_config, rngs=rngs)

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        return training_sequences(
            self.source,
            sequence_length=self.data.sequence_length,
            seed=self.seed,
            **share_of(self.data.batch_size, process_index, process_count),
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        return evaluation_sequences(
            self.source,
            split,
            sequence_length=self.data.sequence_length,
            **evaluation.reader(self.data.batch_size),
        )

    def loss(
        self,
        model: Classifier | Matcher,
        batch: dict[str, jax.Array],
        dropout_key: PRNGKey | None,
    ) -> Metrics:
        inputs = batch["inputs"]
        if self.padded:
            mask = sequence_parallel.places(inputs.shape[-1]) < batch["lengths"][..., None]
        else:  # attention without a mask is cheaper
            mask = sequence_parallel.in_row(inputs, self.data.sequence_length)
        masked = {"mask_BT" if self.source.sequences_per_example == 1 else "mask_B2T": mask}
        logits_BE = model(inputs, **masked, dropout_key=dropout_key)
        # All shards of a row have its logits; only the first shard counts the row.
        weights_B = batch["weights"] * (sequence_parallel.shard() == 0)
        return classification_loss(logits_BE, batch["labels"], weights_B)

    def describe(self, model: Classifier | Matcher) -> dict[str, str]:
        source = self.source
        _, labels = source.split("train")
        _, held_out = source.split("validation")
        most = np.bincount(held_out).max() / len(held_out)
        pairs = "" if source.sequences_per_example == 1 else "pairs of "
        return {
            "data": f"{source.name}, {len(labels):,} examples to train on ({source.licence})",
            "sequences": f"{pairs}up to {self.data.sequence_length:,} tokens of "
            f"{source.vocab_size}, {source.num_classes} classes",
            "chance": f"{most:.4f} of the validation split are of the most frequent class",
            "parameters": f"{model.num_parameters:,}",
        }
