"""Base class of tasks with a language model on rows of tokens or pixels."""

import jax
import ml_collections
from flax import nnx

from linear_transformer.config import configuration
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.tasks.base import Task


class TokenTask(Task):
    """Task with a `LanguageModel` on rows of one length, causal unless a subclass says otherwise.

    Args:
      config: config of the experiment.
      vocab_size: vocabulary size of the model's input.
    """

    def __init__(self, config: ml_collections.ConfigDict, vocab_size: int):
        super().__init__(config)
        self.model_config = configuration.build(
            LanguageModelConfig, config.model, "model", vocab_size=vocab_size
        )
        self._check_directions()
        length = config.data.sequence_length
        self.model_config.require_positions("config.data.sequence_length", length)

    def _check_directions(self) -> None:
        """Raises a ConfigError unless the mixers have the direction that the task needs."""
        self.model_config.require_causal()

    def rows_at(self, length: int) -> int:
        """Returns the rows of an evaluation batch: fewer than in training if rows are longer."""
        rows, trained = self.data.batch_size, self.data.sequence_length
        return rows if length <= trained else max(rows * trained // length, 1)

    def make_model(self, rngs: nnx.Rngs) -> LanguageModel:
        return LanguageModel(self.model_config, rngs=rngs)

    def describe(self, model: LanguageModel) -> dict[str, str]:
        facts = {"parameters": f"{model.num_parameters:,}"}
        if not self.model_config.has_look_ahead:
            state = jax.eval_shape(lambda: model.init_state(1)["layers"])
            state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
            facts["state"] = f"{state_bytes:,} bytes a sequence when decoding"
        context = self.data.sequence_length
        flops = 3 * self.flops_per_example(model) // context
        return facts | {"FLOPs": f"{flops:,} per trained token at context {context}"}
