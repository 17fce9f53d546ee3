"""Tasks of the scorecard: the same small model and budget for every mechanism.

    python train.py --config=configs/scorecard/task.py:mqar,gla
    python -m linear_transformer.scorecard --names=gla --launch

A variant is a task and, after a comma, a mechanism of configs/mechanisms.py:

    shakespeare        bytes of 42 works, 128 in a window; also windows of 1,024
    mqar               8 pairs of keys and values in 64 tokens (Arora et al. 2023)
    selective_copying  8 symbols of 14 kinds in 128 tokens (Gu & Dao 2023)
    parity             every prefix of words of 3 to 40 bits; also words of 256 bits
    s3                 products of 3 to 40 permutations of three things; also 128 of them

Models have 2 layers of width 64 with 2 heads, and a feed-forward unless the task is mqar.  A run
has 600 steps of AdamW with a cosine, on 2,048 to 4,096 tokens a step, and takes a minute or two on
one core.  It ends before if an evaluation has an accuracy of 0.999, for parity and s3 at the
longest length.
"""

import ml_collections

from configs import default, mechanisms
from configs.recall import synthetic
from linear_transformer.errors import ConfigError

RATES = (3e-3, 1e-3, 1e-2)
SOLVED = 0.999  # accuracy that ends a run and the grid
_STEPS = 600
# Task -> generator, its options, length, rows of a batch, longer length, headline.
_SYNTHETIC = {
    "mqar": ("multi_query_recall", {"vocab_size": 256, "pairs": 8}, 64, 64, None),
    "selective_copying": ("selective_copying", {"symbols": 14, "count": 8}, 128, 32, None),
    "parity": ("words", {"group": "Z2", "shortest": 3}, 40, 64, 256),
    "s3": ("words", {"group": "S3", "shortest": 3}, 40, 64, 128),
}
TASKS = ("shakespeare", *_SYNTHETIC)


def get_config(variant: str = "mqar,linear") -> ml_collections.ConfigDict:
    task, _, mechanism = variant.partition(",")
    if task not in TASKS:
        raise ConfigError(
            f"--config=...:{variant}: the variants are {', '.join(TASKS)}, "
            "each alone or with ',' and a mechanism"
        )
    config = _shakespeare(mechanism) if task == "shakespeare" else _synthetic(task, mechanism)
    config.num_steps = _STEPS
    config.log_every = config.eval_every = config.checkpoint_every = 100
    config.keep_checkpoints = 1
    config.sample = False
    config.optimizer.update(
        name="adamw", learning_rate=RATES[0], warmup_steps=50, weight_decay=0.1, clip_norm=1.0
    )
    return config


def _shakespeare(mechanism: str) -> ml_collections.ConfigDict:
    config = default.get_config(mechanism or "linear", width=64, num_layers=2)
    config.data.update(
        dataset="shakespeare", batch_size=16, sequence_length=128, evaluation_lengths=(1_024,)
    )
    config.model.num_heads = 2
    mechanisms.follow_data(config.model.mixers)
    return config


def _synthetic(task: str, mechanism: str) -> ml_collections.ConfigDict:
    dataset, options, length, rows, longer = _SYNTHETIC[task]
    config = synthetic.get_config(
        mechanism or "linear", dataset=dataset, options=options, sequence_length=length
    )
    config.data.update(batch_size=rows, evaluation_examples=512)
    if task == "mqar":
        config.model.feed_forward_width = 0
    if longer:
        config.data.evaluation_lengths = (longer,)
    config.stop_when = f"accuracy{f'_at_{longer}' if longer else ''} >= {SOLVED}"
    return config
