"""Base class of tasks with a causal language model on generated sequences or pixels."""

import jax
import ml_collections
from flax import nnx

from linear_transformer.config import configuration
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.tasks.base import Task


class TokenTask(Task):
    """Task with a causal `LanguageModel` on rows of one length.

    Args:
      config: config of the experiment.
      vocab_size: vocabulary size of the model's input.
    """

    def __init__(self, config: ml_collections.ConfigDict, vocab_size: int):
        super().__init__(config)
        self.model_config: LanguageModelConfig = configuration.build(
            LanguageModelConfig, config.model, "model", vocab_size=vocab_size
        )
        self.model_config.require_causal()
        length = config.data.sequence_length
        self.model_config.require_positions("config.data.sequence_length", length)

    def make_model(self, rngs: nnx.Rngs) -> LanguageModel:
        return LanguageModel(self.model_config, rngs=rngs)

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
