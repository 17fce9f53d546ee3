"""Shakespeare, bytes: 42 works, whole works held out.

    python train.py --config=configs/lm/shakespeare.py
    python eval.py --workdir=runs/lm/shakespeare --split=validation

Training takes about MINUTES on 2 CPU cores and reaches NUMBER bits/byte on the validation split
(NUMBER on the test split).
"""

import ml_collections

from configs import default


def get_config(variant: str = "linear") -> ml_collections.ConfigDict:
    config = default.get_config(variant)
    config.num_steps = 1300
    config.eval_every = 1300
    config.checkpoint_every = 650
    config.data.dataset = "shakespeare"
    return config
