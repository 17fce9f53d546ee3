"""Lists the mechanisms: python -m linear_transformer.cli.mechanisms

The program prints one line for each NAME in `--config=configs/default.py:NAME`: what the mechanism
computes, its source, and the size of the decoding state of one sequence in the model of
configs/default.py.  Names without a state are bidirectional; use `configs/lra/text.py:NAME`.
"""

import jax
from flax import nnx

from linear_transformer.config import configuration, shipped_configs
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.runtime import program

_BYTES = 256  # vocabulary size for bytes


def state_of(name: str) -> str:
    """Returns text with the bytes of a state, and the number of tokens that fit if limited."""
    from configs import default, mechanisms

    if name not in mechanisms.NAMES:
        return "none"
    config = configuration.build(
        LanguageModelConfig, default.get_config(name).model, "model", vocab_size=_BYTES
    )
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=ParameterRngs(0)))
    state = jax.eval_shape(lambda: model.init_state(1))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    limit = "" if model.capacity is None else f", for {model.capacity:,} tokens"
    return f"{size:,} bytes{limit}"


def main() -> None:
    shipped_configs.make_importable()
    from configs import mechanisms

    for name, mechanism in mechanisms.TABLE.items():
        print(f"{name:16} {mechanism.meaning}; {mechanism.source}; state: {state_of(name)}")


if __name__ == "__main__":
    program.run(main)
