"""Parity of every prefix: trained on words of 3 to 40 bits, tested on words of up to 256.

    python train.py --config=configs/recall/parity.py:delta_net
    python eval.py --workdir=runs/recall/parity-delta_net --split=test

The setting of Grazzi et al. 2024 (arXiv:2411.12537, section 5.1), where only models whose state
transitions have negative eigenvalues solve it at lengths that were not trained.  Any mechanism of
configs/mechanisms.py is a variant; `--config.data.options.group=S5` makes it the word problem of
the permutations of five things.

Accuracy on words of up to 256 bits after 2,000 steps, one seed, 2026-11-24: :delta_net with
`--config.model.mixers.delta_net.negative_eigenvalues=True` 98.3 %, without 65.5 %, :linear 61.5 %,
:gla 56.3 %, :softmax 52.7 %; docs/recall.md has the curves.
"""

import ml_collections

from configs.recall import synthetic


def get_config(variant: str = "gated_delta_net") -> ml_collections.ConfigDict:
    config = synthetic.get_config(
        variant, dataset="words", options={"group": "Z2", "shortest": 3}, sequence_length=40
    )
    config.data.evaluation_lengths = (64, 128, 256)
    return config
