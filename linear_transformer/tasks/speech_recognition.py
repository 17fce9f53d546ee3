"""Speech recognition: connectionist temporal classification (CTC), and error rates."""

import itertools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from linear_transformer.config import configuration
from linear_transformer.data.share import share_of
from linear_transformer.data.speech.filterbanks import NUM_FILTERS, SHIFT_MS
from linear_transformer.data.speech.speech_batches import (
    evaluation_utterances,
    load_source,
    training_utterances,
)
from linear_transformer.data.speech.speech_units import BLANK
from linear_transformer.data.stream import Batch, Sequences
from linear_transformer.inference import ctc
from linear_transformer.models.speech_recognizer import (
    ENCODERS,
    SpeechRecognizer,
    TransformerConfig,
)
from linear_transformer.ops import sequence_parallel
from linear_transformer.sharding.placement import own_rows
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.base import Task
from linear_transformer.types import Logits, Metrics, PRNGKey

_SAMPLED = 5  # utterances


class SpeechRecognition(Task):
    """The task of every config with `task = "speech_recognition"`.

    `config.encoder` is the kind of model in `config.model`: "transformer" or "bilstm".
    `config.beam_width` sets the prefix beam search of evaluations; 0 takes the best path.  The loss
    is in nats per unit.  Error rates can exceed 1.
    """

    headline = "loss"
    sequences = Sequences(("frames",))

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.beam_width = config.beam_width
        self.source = load_source(config.data)
        kind, symbols = ENCODERS[config.encoder], self.source.units.size + 1
        self.model_config = configuration.build(kind, config.model, "model", vocab_size=symbols)
        if isinstance(self.model_config, TransformerConfig):
            self.model_config.require_positions("config.data.max_frames", config.data.max_frames)

    def make_model(self, rngs: nnx.Rngs) -> SpeechRecognizer:
        return SpeechRecognizer(self.model_config, NUM_FILTERS, rngs=rngs)

    def flops_per_example(self, model: SpeechRecognizer) -> int:
        return self.data.max_frames * model.flops_per_token(self.data.max_frames)

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        return training_utterances(
            self.source,
            seed=self.seed,
            **share_of(self.data.batch_size, process_index, process_count),
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        reader = evaluation.reader(self.data.batch_size)
        return evaluation_utterances(self.source, split, **reader)

    def loss(
        self, model: SpeechRecognizer, batch: dict[str, jax.Array], dropout_key: PRNGKey | None
    ) -> Metrics:
        """Returns {"loss": (nats of the transcripts over all alignments, number of units)}."""
        return self._loss_and_logits(model, batch, dropout_key)[0]

    def measure(
        self, model: SpeechRecognizer, batch: dict[str, jax.Array]
    ) -> tuple[Metrics, Logits]:
        """Returns the loss, and the logits, from which the host makes transcripts."""
        return self._loss_and_logits(model, batch, None)

    def _loss_and_logits(
        self, model: SpeechRecognizer, batch: dict[str, jax.Array], dropout_key: PRNGKey | None
    ) -> tuple[Metrics, Logits]:
        places_T = sequence_parallel.places(batch["frames"].shape[1])
        mask_BT = places_T < batch["num_frames"][:, None]
        spelled_BU = jnp.arange(self.data.max_units) < batch["num_units"][:, None]
        logits_BTE = model(batch["frames"], mask_BT=mask_BT, dropout_key=dropout_key)
        # An alignment covers the whole utterance; only the first of its shards counts the loss.
        logits_BTE, mask_BT = map(sequence_parallel.gathered, (logits_BTE, mask_BT))
        weights_B = batch["weights"] * (sequence_parallel.shard() == 0)
        nll_B = optax.ctc_loss(logits_BTE, ~mask_BT, batch["units"], ~spelled_BU, blank_id=BLANK)
        sums = jnp.sum(nll_B * weights_B), jnp.sum(batch["num_units"] * weights_B)
        return {"loss": sums}, logits_BTE

    def metric_names(self, graphdef: nnx.GraphDef, parameters: Any) -> list[str]:
        words = ["word_error_rate"] if self.source.units.has_words else []
        return [*super().metric_names(graphdef, parameters), "unit_error_rate", *words]

    def _sums(self, graphdef: nnx.GraphDef, parameters: Any, batch: Batch) -> Metrics:
        """Computes the loss, and the errors of the recognized text outside of JAX."""
        metrics, logits_BTE = self._forward(graphdef, parameters, batch)
        errors = np.zeros((2, 2))  # rows are units and words, columns are errors and count
        for row in np.flatnonzero(batch["weights"]):
            found = self._recognize(logits_BTE[row, : batch["num_frames"][row]])
            expected = batch["units"][row, : batch["num_units"][row]]
            texts = [self.source.units.write(ids).split() for ids in (found, expected)]
            for n, pair in enumerate(((found.tolist(), expected.tolist()), texts)):
                errors[n] += ctc.edit_distance(*pair), len(pair[1])
        errors = evaluation.of_all_processes(errors)
        metrics["unit_error_rate"] = tuple(errors[0])
        if self.source.units.has_words:
            metrics["word_error_rate"] = tuple(errors[1])
        return metrics

    def _forward(
        self, graphdef: nnx.GraphDef, parameters: Any, batch: Batch
    ) -> tuple[Metrics, np.ndarray]:
        """Computes the loss of all rows, and the logits of the rows of this process."""
        placed = evaluation.put(batch, self.sequences)
        metrics, logits_BTE = self.forward(graphdef, parameters, placed)
        return metrics, own_rows(logits_BTE)

    def _recognize(self, logits_TE: np.ndarray) -> ctc.Labelling:
        if not self.beam_width:
            return ctc.greedy(logits_TE)
        log_probs_TE = logits_TE - np.logaddexp.reduce(logits_TE, axis=1, keepdims=True)
        return ctc.prefix_beam_search(log_probs_TE, self.beam_width)[0]

    def describe(self, model: SpeechRecognizer) -> dict[str, str]:
        source = self.source
        examples, _ = source.split("train")
        held_out, _ = source.split("validation")
        minutes = sum(e.utterance.num_frames for e in examples) * SHIFT_MS / 60_000
        units = sum(len(e.ids) for e in examples)
        return {
            "data": f"{source.corpus.name}, {len(examples):,} utterances ({minutes:,.1f} minutes, "
            f"{units:,} {source.units.name}) to train on, {len(held_out):,} to validate on "
            f"({source.corpus.licence})",
            "left out": f"{source.left_out('train'):,} and {source.left_out('validation'):,}: "
            f"more than {self.data.max_frames:,} frames or {self.data.max_units:,} units, or not "
            "to be spelled",
            "parameters": f"{model.num_parameters:,}",
        }

    def sample(self, graphdef: nnx.GraphDef, parameters: Any) -> str:
        """Returns validation transcripts and the recognized text."""
        batch = next(self.evaluation_batches("validation"))
        _, logits_BTE = self._forward(graphdef, parameters, batch)
        lines = []
        for row in itertools.islice(np.flatnonzero(batch["weights"]), _SAMPLED):
            found = self._recognize(logits_BTE[row, : batch["num_frames"][row]])
            expected = batch["units"][row, : batch["num_units"][row]]
            write = self.source.units.write
            lines.append(f"said:  {write(expected)}\nfound: {write(found)}")
        return "\n".join(lines)
