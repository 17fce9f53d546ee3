"""Memorization of MAD (Poli et al. 2024) as in DeltaNet (Yang et al. 2024).

    python train.py --config=configs/papers/yang2024/memorization.py:delta_net \
        --config.data.options.vocab_size=256
    python eval.py --workdir=runs/papers/yang2024/memorization-delta_net-vocab_size=256 --split=test

Any mechanism of configs/mechanisms.py is a variant.  As released (arXiv:2403.17844 and 2406.06484):
256 training examples of 32 tokens, 200 epochs in batches of 128, two mixers and two SwiGLU layers
of width 128, AdamW with a cosine.  A score is the mean over vocabularies of 256 to 8,192 of the
best accuracy on 1,280 test examples among the rates 1e-4, 5e-4 and 1e-3 and the weight decays 0 and
0.1.

Differences: MAD's cosine ends at 1e-6, here it ends at a thousandth of the rate.
"""

import ml_collections

from configs.recall import mad

VOCABULARIES = (256, 512, 1_024, 2_048, 4_096, 8_192)
GRID = {
    "optimizer.learning_rate": (1e-3, 5e-4, 1e-4),  # the best one at 256 first
    "optimizer.weight_decay": (0.0, 0.1),
}
_EXAMPLES = 256


def get_config(variant: str = "delta_net") -> ml_collections.ConfigDict:
    config = mad.get_config(f"memorization,{variant}")
    config.num_steps = 200 * _EXAMPLES // config.data.batch_size
    config.eval_every = config.checkpoint_every = config.num_steps
    config.data.training_examples = _EXAMPLES
    config.model.update(gated=True, activation="silu", norm="rmsnorm", tied=False)
    config.optimizer.update(warmup_steps=0, clip_norm=0.0)
    return config
