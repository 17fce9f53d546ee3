"""Induction heads, 2^6 to 2^20 tokens: Mamba (Gu & Dao 2023, arXiv:2312.00752), table 11.

    python train.py --config=configs/papers/gu2023/induction_heads.py
    python eval.py --workdir=runs/papers/gu2023/induction_heads --split=test

As published: 2 layers of width 64, trained on 256 tokens of 16 kinds for 204,800 steps of 8
sequences with Adam at a constant rate of 1e-3, without weight decay.  A test has up to 1,024
examples, and at most 2^22 tokens: 4 examples of 2^20 tokens.  In the paper, Mamba has 100 % at
every length.

Difference: gradients are clipped at a norm of 1.
"""

import ml_collections

from configs import default
from linear_transformer.errors import ConfigError

LENGTHS = tuple(2**n for n in range(6, 21))
TRAINED = 256


def get_config(variant: str = "mamba") -> ml_collections.ConfigDict:
    if variant != "mamba":
        raise ConfigError(f"--config=...:{variant}: the only variant is mamba")
    config = default.get_config(variant, width=64, num_layers=1)  # two layers of Mamba
    config.task = "synthetic"
    config.sample = False
    config.num_steps = 204_800
    config.log_every = 2_048
    config.eval_every = config.num_steps
    config.checkpoint_every = 8_192
    config.data = ml_collections.ConfigDict(
        {
            "dataset": "induction_heads",
            "options": {"symbols": 15},
            "batch_size": 8,
            "sequence_length": TRAINED,
            "evaluation_examples": 1_024,
            "evaluation_lengths": tuple(length for length in LENGTHS if length != TRAINED),
            "evaluation_options": {},
        }
    )
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-3,
        warmup_steps=0,
        schedule="constant",
        weight_decay=0.0,
        clip_norm=1.0,
    )
    return config
