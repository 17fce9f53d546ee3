"""Base config of this folder: a small model on generated sequences.

Any mechanism of configs/mechanisms.py is a variant.  The sizes are meant for training in minutes on
2 CPU cores.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import default, mechanisms


def get_config(
    variant: str, *, dataset: str, options: Mapping[str, Any], sequence_length: int, width: int = 64
) -> ml_collections.ConfigDict:
    """Returns a config of two layers with two heads, 2,000 steps of 128 sequences, AdamW, cosine.

    Args:
      variant: a name in configs/mechanisms.py.
      dataset: a name in `linear_transformer.data.synthetic.generators.GENERATORS`.
      options: options of the generator.
      sequence_length: T in training.
      width: width of the model.
    """
    config = default.get_config(variant, width=width, num_layers=2)
    config.task = "synthetic"
    config.sample = False
    config.num_steps = 2_000
    config.log_every = 100
    config.eval_every = config.checkpoint_every = 500
    config.data = ml_collections.ConfigDict(
        {
            "dataset": dataset,
            "options": dict(options),
            "batch_size": 128,
            "sequence_length": sequence_length,
            "evaluation_examples": 1_024,
            "evaluation_lengths": (),
            "evaluation_options": {},
        }
    )
    config.model.num_heads = 2
    mechanisms.follow_data(config.model.mixers)
    config.optimizer.update(name="adamw", learning_rate=3e-3, clip_norm=1.0)
    return config
