"""Modular arithmetic without brackets: training on 3 to 39 tokens, tests on longer expressions.

    python train.py --config=configs/recall/modular_arithmetic.py:delta_product
    python eval.py --workdir=runs/recall/modular_arithmetic-delta_product --split=test

An expression is like `3 * 2 - 4 =`, modulo 5 (Deletang et al. 2022, arXiv:2207.02098).  Grazzi et
al. 2024 (arXiv:2411.12537, section 5.1) train linear recurrences on 3 to 40 tokens, with 2 layers
of width 128 and 4 heads, for 100,000 steps of 256 with a weight decay of 0.1, and test on 40 to 256
tokens; this test is `accuracy_at_length_256_shortest_40`.  Chance is 1 in 5.  Any mechanism of
configs/mechanisms.py is a variant; here the width is 64, with 2 heads and 2,000 steps of 128.  The
config was not run yet.
"""

import ml_collections

from configs.recall import synthetic


def get_config(variant: str = "delta_product") -> ml_collections.ConfigDict:
    config = synthetic.get_config(
        variant, dataset="modular_arithmetic", options={"shortest": 3}, sequence_length=40
    )
    config.data.evaluation_lengths = (64, 128, 256)
    config.data.evaluation_options = {"shortest": ((256, 40),)}
    return config
