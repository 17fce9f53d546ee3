"""Inpainting of music: cross entropy of masked events (Hadjeres & Crestel 2021)."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array

from linear_transformer.config import configuration
from linear_transformer.data.errors import lookup, without_path
from linear_transformer.data.music import chorales, piano
from linear_transformer.data.music.note_pipeline import (
    NUM_SPECIAL,
    EventCorpus,
    evaluation_events,
    training_events,
)
from linear_transformer.data.share import share_of
from linear_transformer.data.stream import Batch, Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.models.aligned_encoder_decoder import (
    AlignedEncoderDecoder,
    AlignedEncoderDecoderConfig,
)
from linear_transformer.ops import sequence_parallel
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.base import Task
from linear_transformer.tasks.language_modelling import negative_log_likelihood
from linear_transformer.types import Metrics, PRNGKey

DATASETS: dict[str, Callable[[Any], EventCorpus]] = {
    "maestro10": without_path(piano.load_maestro),
    "midi_folder": piano.load_folder,
    "chorales": without_path(chorales.load),
}


class Inpainting(Task):
    """The task of every config with `task = "inpainting"`.

    `config.data.sequence_length` counts tokens: events times channels.
    """

    headline = "nats_per_event"
    sequences = Sequences(("events", "elapsed", "masked", "weights"))
    no_state = "an anti-causal encoder reads whole windows"
    no_prompt = (
        "a run of inpainting continues no text; python -m linear_transformer.inpaint fills gaps"
    )

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        load = lookup(DATASETS, config.data.dataset, "config.data.dataset")
        self.corpus = load(config.data)
        sizes = tuple(size + NUM_SPECIAL for size in self.corpus.num_values)
        self.model_config = configuration.build(
            AlignedEncoderDecoderConfig, config.model, "model", vocab_sizes=sizes
        )
        channels = len(self.corpus.channels)
        if config.data.sequence_length < 1 or config.data.sequence_length % channels:
            raise ConfigError(
                f"config.data.sequence_length ({config.data.sequence_length}) must be a positive "
                f"multiple of {channels}, the tokens of an event of {self.corpus.name}"
            )
        if self.corpus.time_shift is None and self.model_config.elapsed_width:
            raise ConfigError(
                f"config.model.elapsed_width is {self.model_config.elapsed_width}; it must be 0, "
                f"as the events of {self.corpus.name} are evenly spaced"
            )
        self.num_events = config.data.sequence_length // channels

    def make_model(self, rngs: nnx.Rngs) -> AlignedEncoderDecoder:
        return AlignedEncoderDecoder(self.model_config, rngs=rngs)

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        return training_events(
            self.corpus,
            num_events=self.num_events,
            seed=self.seed,
            **share_of(self.data.batch_size, process_index, process_count),
        )

    def loss(
        self,
        model: AlignedEncoderDecoder,
        batch: dict[str, Array],
        dropout_key: PRNGKey | None,
    ) -> Metrics:
        """Returns sums and counts over all tokens of masked events, without PAD and START."""
        events = (batch["events"], batch["elapsed"], batch["masked"])
        mask_BN = sequence_parallel.in_row(batch["elapsed"], self.num_events)
        logits = model(*events, mask_BN=mask_BN, dropout_key=dropout_key)
        weights_BN = batch["weights"]
        count = weights_BN.sum()
        metrics, total = {}, jnp.zeros(())
        for channel, logits_BNE in enumerate(logits):
            name, targets_BN = self.corpus.channels[channel], batch["events"][..., channel]
            nll = jnp.sum(negative_log_likelihood(logits_BNE, targets_BN) * weights_BN)
            right_BN = jnp.argmax(logits_BNE, axis=-1) == targets_BN
            metrics[f"nll_{name}"] = (nll, count)
            metrics[f"accuracy_{name}"] = (jnp.sum(right_BN * weights_BN), count)
            total += nll
        return metrics | {"loss": (total, count * len(logits))}

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        means = super().summarize(sums, split)
        means["nats_per_event"] = sum(means[f"nll_{name}"] for name in self.corpus.channels)
        return means

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        reader = evaluation.reader(self.data.batch_size)
        return evaluation_events(self.corpus, split, num_events=self.num_events, **reader)

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Computes metrics in nats per masked token, with the same masks every time.

        `unigram_nats_per_event` is the cross entropy of the same events under the frequencies of
        the train split, a baseline without context.
        """
        batches, again = itertools.tee(
            itertools.islice(self.evaluation_batches(split), max_batches)
        )
        sums = self._total(graphdef, parameters, batches)
        events = sums["loss"][1] / len(self.corpus.channels)
        unigram = np.zeros(())
        for batch in again:
            for channel, nll in enumerate(self._unigram_nll):
                unigram += np.sum(nll[batch["events"][..., channel]] * batch["weights"])
        unigram = float(evaluation.of_all_processes(unigram))
        metrics = self.summarize(sums, split)
        metrics["unigram_nats_per_event"] = unigram / max(events, 1)
        return metrics | {"masked_events": events}

    @functools.cached_property
    def _unigram_nll(self) -> list[np.ndarray]:
        """Negative log frequencies (add-one) of each channel in the train split, with specials."""
        events = [self.corpus.encode(piece) for piece in self.corpus.pieces("train")]
        columns = np.concatenate(events).T
        nll = []
        for size, column in zip(self.model_config.vocab_sizes, columns, strict=True):
            counts = np.bincount(column, minlength=size) + 1.0
            nll.append(-np.log(counts / counts.sum()))
        return nll

    def describe(self, model: AlignedEncoderDecoder) -> dict[str, str]:
        pieces = self.corpus.pieces("train")
        return {
            "data": f"{self.corpus.name}, {len(pieces)} pieces of {sum(map(len, pieces)):,} events "
            f"to train on ({self.corpus.licence})",
            "window": f"{self.num_events} events x {len(self.corpus.channels)} tokens",
            "parameters": f"{model.num_parameters:,}",
        }
