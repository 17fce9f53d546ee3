"""Parity with eigenvalues in [0, 1] and in [-1, 1]: Grazzi et al. 2024 (arXiv:2411.12537), table 3.

    python train.py --config=configs/papers/grazzi2024/parity.py:delta_net,negative
    python eval.py --workdir=runs/papers/grazzi2024/parity-delta_net,negative --split=test

Variants are :delta_net, :mamba, :mlstm, :slstm and :softmax; `,negative` gives DeltaNet and Mamba
eigenvalues in [-1, 1].  As released, models have 2 layers of width 128 and are trained for 20,000
steps of 256 words of 2 to 39 bits with AdamW at 1e-3, a warm-up of 2,000 steps and a cosine to a
thousandth.  Only the parity of the whole word counts.  Tests are on 8,192 words of 39 to 255 bits.

The paper has the scaled accuracy 2 a - 1, best of three seeds: 1.000 for DeltaNet and Mamba with
negative eigenvalues and for sLSTM, 0.017 for DeltaNet and 0.000 for Mamba without, 0.087 for mLSTM
and 0.022 for a transformer.  Deviation: training ends when all words of an evaluation are right,
if 20,000 steps are not over before.

Differences: the released xLSTM has a weight decay of 0.1, and mLSTM no warm-up.
"""

import ml_collections

from configs import default
from linear_transformer.errors import ConfigError

NAMES = ("delta_net", "mamba", "mlstm", "slstm", "softmax")
NEGATIVE = ("delta_net", "mamba")
LONG = (255, 39)  # longest and shortest word of the tests
ACCURACY = "accuracy_at_length_{}_shortest_{}".format(*LONG)


def get_config(variant: str = "delta_net,negative") -> ml_collections.ConfigDict:
    name, _, kind = variant.partition(",")
    if name not in NAMES or kind not in ("", "negative") or (kind and name not in NEGATIVE):
        raise ConfigError(
            f"--config=...:{variant}: the variants are {', '.join(NAMES)}, and "
            f"{' and '.join(NEGATIVE)} with ',negative'"
        )
    config = default.get_config(name, width=128, num_layers=1 if name == "mamba" else 2)
    config.task = "synthetic"
    config.sample = False
    config.num_steps = 20_000
    config.log_every = 100
    config.eval_every = config.checkpoint_every = 200
    config.stop_when = f"{ACCURACY} >= 1"
    config.data = ml_collections.ConfigDict(
        {
            "dataset": "words",
            "options": {"group": "Z2", "shortest": 2, "last": True},
            "batch_size": 256,
            "sequence_length": 39,
            "evaluation_examples": 8_192,
            "evaluation_lengths": (),
            "evaluation_options": {"shortest": (LONG,)},
        }
    )
    config.model.update(num_heads=4, gated=True, activation="silu", norm="rmsnorm", tied=False)
    if kind:
        config.model.mixers[name].negative_eigenvalues = True
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-3,
        warmup_steps=2_000,
        schedule="cosine",
        final_fraction=1e-3,
        weight_decay=0.0,
        clip_norm=0.0,
    )
    return config
