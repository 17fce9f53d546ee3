"""Selective copying of Mamba (Gu & Dao 2023, arXiv:2312.00752, section 4.1.1 and table 1).

    python train.py --config=configs/recall/selective_copying.py:mamba
    python eval.py --workdir=runs/recall/selective_copying-mamba --split=test

The model repeats, in order and at the end, 16 symbols of 14 kinds that stand among blanks.  Any
mechanism of configs/mechanisms.py is a variant.  The paper has 4,096 tokens, 2 layers of width 64
and 400,000 steps of 64 at a constant 1e-4; here there are 256 tokens, 2,000 steps of 64 and a
cosine from 3e-3.  On 2 cores (AMD EPYC, AVX-512, 2026-11-24), :gated_delta_net predicts 81.6 % of
the symbols after these steps, and 99.4 % (test split) with `--config.num_steps=5000` after 20
minutes.  The other variants were not run.
"""

import ml_collections

from configs.recall import synthetic


def get_config(variant: str = "mamba") -> ml_collections.ConfigDict:
    config = synthetic.get_config(
        variant,
        dataset="selective_copying",
        options={"symbols": 14, "count": 16},
        sequence_length=256,
    )
    config.data.batch_size = 64
    return config
