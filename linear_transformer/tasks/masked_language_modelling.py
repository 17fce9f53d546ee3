"""Masked language modelling: a bidirectional model predicts hidden tokens.

The masks follow Devlin et al. 2019 (BERT) and are drawn anew at every step, as in Liu et al. 2019
(RoBERTa, section 4.1): 15 % of the tokens of a row are predicted; of these, 80 % are replaced by
the mask token, 10 % by a random token, and 10 % stay unchanged.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from linear_transformer.data.stream import Batch
from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.ops import sequence_parallel
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.language_modelling import exponential, negative_log_likelihood
from linear_transformer.tasks.text_task import TextTask
from linear_transformer.types import Metrics, PRNGKey, Tokens

LN2 = math.log(2)
EVALUATION_SEED = 0  # for masks: all evaluations of a split predict the same tokens
MASKED, RANDOM = 0.8, 0.1  # shares of the predicted tokens; the rest stays unchanged


class Masked(NamedTuple):
    """Input tokens, and the mask of the tokens to predict."""

    tokens_BT: Tokens
    predicted_BT: Bool[Array, "B T"]


def mask_tokens(
    tokens_BT: Tokens,
    maskable_BT: Bool[Array, "B T"],
    keys_B: PRNGKey,
    *,
    rate: float,
    bos_id: int,
    mask_id: int,
) -> Masked:
    """Chooses the share `rate` of the maskable tokens of every row and hides them.

    The number of tokens is rounded up or down at random, so that its mean is exact, but a row with
    maskable tokens has at least one hidden token.

    Args:
      tokens_BT: ids below `mask_id`.
      maskable_BT: False for padding and special tokens, which are neither hidden nor predicted.
      keys_B: one key per row; equal keys give equal masks.
      rate: share of the tokens to predict.
      bos_id: id that is never drawn as a random token.
      mask_id: id of the mask token, one more than the largest id of the text.
    """

    def row(tokens_T, maskable_T, key):
        order, rounding, kind, random = jax.random.split(key, 4)
        count = jnp.sum(maskable_T)
        number = jnp.floor(rate * count + jax.random.uniform(rounding)).astype(jnp.int32)
        number = jnp.minimum(jnp.maximum(number, 1), count)
        draws_T = jnp.where(maskable_T, jax.random.uniform(order, tokens_T.shape), 2.0)
        ranks_T = jnp.argsort(jnp.argsort(draws_T))
        predicted_T = ranks_T < number
        kind_T = jax.random.uniform(kind, tokens_T.shape)
        random_T = jax.random.randint(random, tokens_T.shape, 0, mask_id - 1)
        random_T = random_T + (random_T >= bos_id)
        hidden_T = jnp.where(kind_T < MASKED, mask_id, random_T)
        hidden_T = jnp.where(kind_T < MASKED + RANDOM, hidden_T, tokens_T)
        return jnp.where(predicted_T, hidden_T, tokens_T).astype(tokens_T.dtype), predicted_T

    return Masked(*jax.vmap(row)(tokens_BT, maskable_BT, keys_B))


def _row_keys(key: PRNGKey, rows_B: Int[Array, " B"]) -> PRNGKey:
    return jax.vmap(functools.partial(jax.random.fold_in, key))(rows_B)


class MaskedLanguageModelling(TextTask):
    """The task of every config with `task = "masked_language_modelling"`.

    The text is the same as in language modelling, without leading BOS tokens; in a contiguous row,
    BOS tokens separate the documents.  `config.mask_rate` is the share of tokens to predict.
    """

    headline = "perplexity"
    no_state = "a masked language model has no state"
    no_prompt = "a masked language model does not write text"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config, special_tokens=1)
        self.mask_rate = config.mask_rate
        self.mask_id = self.corpus.tokenizer.vocab_size

    def _check_directions(self) -> None:
        if not self.model_config.has_look_ahead:
            raise ConfigError(
                "config.model: masked language modelling needs a mixer that looks ahead; set "
                f"config.model.mixers.{self.model_config.pattern[0]}.direction=bidirectional"
            )

    def loss(
        self, model: LanguageModel, batch: dict[str, Array], dropout_key: PRNGKey | None
    ) -> Metrics:
        """Returns sums and counts over the predicted tokens.

        Masks depend on the key of the step: they are new at each step, and the same if a run is
        resumed.  Evaluation has no key; its masks depend on `batch["rows"]`, indices in the split.
        """
        if dropout_key is None:
            keys_B = _row_keys(jax.random.key(EVALUATION_SEED), batch["rows"])
        else:
            dropout_key, mask_key = jax.random.split(dropout_key)
            keys_B = jax.random.split(mask_key, batch["targets"].shape[0])
        whole = [sequence_parallel.gathered(batch[name]) for name in ("targets", "weights")]
        masked = mask_tokens(
            whole[0],
            whole[1] > 0,
            keys_B,
            rate=self.mask_rate,
            bos_id=self.corpus.tokenizer.bos_id,
            mask_id=self.mask_id,
        )
        masked = Masked(*map(sequence_parallel.own, masked))
        logits_BTE, _ = model(
            masked.tokens_BT,
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            dropout_key=dropout_key,
        )
        return self._metrics(logits_BTE, batch["targets"], masked.predicted_BT)

    def _metrics(
        self,
        logits_BTE: Float[Array, "B T E"],
        targets_BT: Tokens,
        predicted_BT: Bool[Array, "B T"],
    ) -> Metrics:
        weights_BT = predicted_BT.astype(logits_BTE.dtype)
        count = weights_BT.sum()
        nll_BT = negative_log_likelihood(logits_BTE, targets_BT)
        right_BT = jnp.argmax(logits_BTE, axis=-1) == targets_BT
        return {
            "loss": (jnp.sum(nll_BT * weights_BT), count),
            "accuracy": (jnp.sum(right_BT * weights_BT), count),
        }

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        """Returns loss in nats, bits, perplexity and accuracy over the predicted tokens."""
        means = super().summarize(sums, split)
        nats = means["loss"]
        means["bits_per_masked_token"] = nats / LN2
        means["perplexity"] = exponential(nats)
        return means

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        size, part, parts = evaluation.reader(self.data.batch_size).values()
        for number, batch in enumerate(super().evaluation_batches(split)):
            first = (number * parts + part) * size
            batch["rows"] = np.arange(first, first + size, dtype=np.int32)
            batch["segment_ids"] = batch["weights"].astype(np.int32)  # padding is its own segment
            yield batch

    def evaluate(
        self, graphdef: nnx.GraphDef, parameters: Any, split: str, max_batches: int | None = None
    ) -> dict[str, float]:
        """Computes metrics over windows of at most T tokens of one document.

        Every token is an input once; the choice of predicted tokens depends on the split alone.
        """
        batches = itertools.islice(self.evaluation_batches(split), max_batches)
        sums = self._total(graphdef, parameters, batches)
        return self.summarize(sums, split) | {"masked_tokens": sums["loss"][1]}
