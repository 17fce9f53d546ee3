"""Parity of every prefix: training on words of 3 to 40 bits, tests on words of up to 256 bits.

    python train.py --config=configs/recall/parity.py:delta_net
    python eval.py --workdir=runs/recall/parity-delta_net --split=test

The setting follows Grazzi et al. 2024 (arXiv:2411.12537, section 5.1), where only models with
negative eigenvalues in their state transitions solve lengths beyond the training lengths.  Any
mechanism of configs/mechanisms.py is a variant; `--config.data.options.group=S5` changes the task
to the word problem of the permutations of five things.

The accuracy on words of up to 256 bits after 2,000 steps (one seed, 4 to 11 minutes on one core) is
98.7 % for :delta_net with `--config.model.mixers.delta_net.negative_eigenvalues=True`, 62.9 %
without, and 56.5 % for :softmax (2026-12-01, Intel Xeon); 61.5 % for :linear and 56.3 % for :gla
(2026-11-24, AMD EPYC).  docs/recall.md has the curves.
"""

import ml_collections

from configs.recall import synthetic


def get_config(variant: str = "gated_delta_net") -> ml_collections.ConfigDict:
    config = synthetic.get_config(
        variant, dataset="words", options={"group": "Z2", "shortest": 3}, sequence_length=40
    )
    config.data.evaluation_lengths = (64, 128, 256)
    return config
