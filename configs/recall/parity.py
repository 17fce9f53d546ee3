"""Parity of every prefix: trained on words of 3 to 40 bits, tested on words of up to 256.

    python train.py --config=configs/recall/parity.py:delta_net
    python eval.py --workdir=runs/recall/parity-delta_net --split=test

The setting of Grazzi et al. 2024 (arXiv:2411.12537, section 5.1), where only models whose state
transitions have negative eigenvalues solve it at lengths that were not trained.  Any mechanism of
configs/mechanisms.py is a variant; `--config.data.options.group=S5` makes it the word problem of
the permutations of five things.  Not run yet.
"""

import ml_collections

from configs import default


def get_config(variant: str = "gated_delta_net") -> ml_collections.ConfigDict:
    config = default.get_config(variant, width=64, num_layers=2)
    config.task = "synthetic"
    config.sample = False
    config.num_steps = 2_000
    config.log_every = 100
    config.eval_every = config.checkpoint_every = 500
    config.data = ml_collections.ConfigDict(
        {
            "dataset": "words",
            "options": {"group": "Z2", "shortest": 3},
            "batch_size": 128,
            "sequence_length": 40,
            "evaluation_examples": 1_024,
            "evaluation_lengths": (64, 128, 256),
        }
    )
    config.model.num_heads = 2
    config.optimizer.update(name="adamw", learning_rate=3e-3, clip_norm=1.0)
    return config
