"""Language modelling: cross entropy of the next token, bits per byte, perplexity."""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.data import stateful_batches
from linear_transformer.errors import ConfigError
from linear_transformer.inference.generation import Sampler, generate
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.nn.mixers.base import reset_rows
from linear_transformer.nn.parameters import declarations
from linear_transformer.sharding.data_parallel import ROWS, WHOLE, Shards
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.text_task import TextTask
from linear_transformer.types import Logits, Metrics, PRNGKey, Tokens

LN2 = math.log(2)


def negative_log_likelihood(logits_BTE: Logits, targets_BT: Tokens) -> Float[Array, "B T"]:
    """Returns -log p(target) in nats, in the dtype of the logits (fp32 or wider)."""
    # A masked sum, because the gradient of a gather would be a scatter.
    is_target = jnp.arange(logits_BTE.shape[-1]) == targets_BT[..., None]
    target_BT = jnp.sum(jnp.where(is_target, logits_BTE, 0), axis=-1)
    return jax.nn.logsumexp(logits_BTE, axis=-1) - target_BT


class LanguageModelling(TextTask):
    """The task of every config with `task = "language_modelling"`."""

    headline = "bits_per_byte"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.label_smoothing = config.label_smoothing
        for length in config.data.get("evaluation_lengths", ()):
            self.model_config.require_positions("config.data.evaluation_lengths", length)
        self.carries_state = config.data.packing == "carried"

    def loss(
        self, model: LanguageModel, batch: dict[str, Array], dropout_key: PRNGKey | None
    ) -> Metrics:
        return self.carried_loss(model, batch, dropout_key)[0]

    def carried_loss(
        self, model: LanguageModel, batch: dict[str, Any], dropout_key: PRNGKey | None
    ) -> tuple[Metrics, Any]:
        logits_BTE, state = model(
            batch["inputs"],
            batch.get("state"),
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            dropout_key=dropout_key,
        )
        nll_BT = negative_log_likelihood(logits_BTE, batch["targets"])
        weights_BT = batch["weights"]
        count = weights_BT.sum()
        metrics = {"nll": (jnp.sum(nll_BT * weights_BT), count)}
        if self.label_smoothing:
            uniform_BT = jax.nn.logsumexp(logits_BTE, axis=-1) - jnp.mean(logits_BTE, axis=-1)
            nll_BT += self.label_smoothing * (uniform_BT - nll_BT)
        return metrics | {"loss": (jnp.sum(nll_BT * weights_BT), count)}, state

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        tokens = sum(map(len, self.corpus.documents(split)))
        bytes_per_token = self.corpus.num_bytes[split] / tokens
        means = super().summarize(sums, split)
        nats = means.pop("nll")
        means["bits_per_byte"] = nats / (LN2 * bytes_per_token)
        if self.corpus.num_words is not None:
            words_per_token = self.corpus.num_words[split] / tokens
            means["word_perplexity"] = exponential(nats / words_per_token)
        means["perplexity"] = exponential(nats)
        return means

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Computes metrics of windows, each without earlier tokens, of the length in training.

        `bits_per_byte_at_L` is of windows of L tokens, L in `config.data.evaluation_lengths`.
        """

        def sums_at(length: int) -> Any:
            batches = itertools.islice(self.windows(split, length), max_batches)
            return self._total(graphdef, parameters, batches)

        sums = sums_at(self.data.sequence_length)
        metrics = self.summarize(sums, split) | {"tokens": sums["nll"][1]}
        for length in self.data.get("evaluation_lengths", ()):
            bits = self.summarize(sums_at(length), split)["bits_per_byte"]
            metrics[f"bits_per_byte_at_{length}"] = bits
        return metrics

    def measure(self, model: LanguageModel, batch: dict[str, Array]) -> tuple[Metrics, None]:
        return {"nll": self.loss(model, batch, None)["nll"]}, None

    def evaluate_stateful(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str
    ) -> dict[str, float]:
        """Computes metrics with the recurrent state carried through whole documents.

        Raises:
          ConfigError: a document is longer than the capacity of the model.
        """
        documents = self.corpus.documents(split)
        model = nnx.merge(graphdef, parameters)
        longest = max(map(len, documents))
        if model.capacity is not None and model.capacity < longest:
            raise ConfigError(
                f"stateful evaluation: the longest document has {longest:,} tokens, and the "
                f"model's state or positions hold {model.capacity:,}"
            )
        reader = evaluation.reader(self.data.batch_size)
        batches = stateful_batches(
            documents,
            self.corpus.tokenizer,
            sequence_length=self.data.sequence_length,
            multiple=evaluation.row_devices() // reader["process_count"],
            **reader,
        )
        total = count = 0.0
        state = None
        for batch in map(evaluation.put, batches):
            if state is None:
                state = evaluation.init_rows(model.init_state, batch["inputs"].shape[0])
            state, nll, weight = self._stateful_nll(graphdef, parameters, state, batch)
            total, count = total + float(nll), count + float(weight)
        metrics = self.summarize({"nll": (total, count)}, split)
        return metrics | {"tokens": count}

    @functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
    def _stateful_nll(self, graphdef, parameters, state, batch):
        declared = declarations(nnx.merge(graphdef, parameters))
        batch = batch | {"state": state}
        shards = Shards(parameters, declared, batch)

        def step(parameters, batch):
            state = reset_rows(batch["state"], batch["reset"])
            model = nnx.merge(graphdef, shards.marked(parameters))
            logits_BTE, state = model(batch["inputs"], state, positions=batch["positions"])
            nll_BT = negative_log_likelihood(logits_BTE, batch["targets"])
            sums = jnp.sum(nll_BT * batch["weights"]), batch["weights"].sum()
            return shards.total(sums), state

        mapped = shards.mapped(step, (shards.parameters, shards.batch), (WHOLE, ROWS))
        sums, state = mapped(parameters, batch)
        return state, *sums

    def sample(self, graphdef: nnx.GraphDef, parameters: Any) -> str:
        return "".join(self.stream(graphdef, parameters, "", 200, Sampler(0.8), seed=0))

    def stream(
        self,
        graphdef: nnx.GraphDef,
        parameters: Any,
        prompt: str,
        num_tokens: int,
        sampler: Sampler,
        seed: int,
    ) -> Iterator[str]:
        """Yields the text that continues the prompt, as it is generated."""
        tokenizer = self.corpus.tokenizer
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()]
        decoder = tokenizer.stream_decoder()
        for token in generate(graphdef, parameters, ids, num_tokens, sampler, seed):
            yield decoder.push(token)
        yield decoder.finish()


def exponential(nats: float) -> float:
    """Returns exp(nats), or infinity where it would overflow."""
    return math.exp(nats) if nats < 700 else math.inf
