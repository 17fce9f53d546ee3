"""Induction heads of Mamba (Gu & Dao 2023, arXiv:2312.00752, section 4.1.2): up to 2^16 tokens.

    python train.py --config=configs/recall/induction_heads.py:mamba
    python eval.py --workdir=runs/recall/induction_heads-mamba --split=test
    python -m linear_transformer.analysis.curves --runs='runs/recall/induction_heads-*' --by=length

A marker stands among random symbols and again as the last token; the model predicts the symbol that
followed the first marker.  Any mechanism of configs/mechanisms.py is a variant; softmax attention
needs T^2 numbers, so give it `--config.data.evaluation_lengths="(64, 1024, 4096)"`.

The paper trains 2 layers of width 64 on 256 tokens, for 204,800 steps of 8 at a constant rate
without weight decay, and tests on 2^6 to 2^20 tokens.  Here training has 2,000 steps of 64 with a
cosine from 3e-3, and the tests at the end have 2^6 to 2^16 tokens by powers of 4; the test of 2^14
tokens has 256 examples and the test of 2^16 has 64.  The config was not run yet.
"""

import ml_collections

from configs.recall import synthetic


def get_config(variant: str = "mamba") -> ml_collections.ConfigDict:
    config = synthetic.get_config(
        variant, dataset="induction_heads", options={"symbols": 15}, sequence_length=256
    )
    config.eval_every = config.num_steps
    config.data.batch_size = 64
    config.data.evaluation_lengths = tuple(4**n for n in (3, 5, 6, 7, 8))
    config.optimizer.weight_decay = 0.0
    return config
