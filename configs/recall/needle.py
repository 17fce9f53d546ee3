"""A needle in a haystack in bytes, as S-NIAH-1 of RULER (Hsieh et al. 2024, arXiv:2404.06654).

    python train.py --config=configs/recall/needle.py:gated_delta_net
    python eval.py --workdir=runs/recall/needle-gated_delta_net --split=test
    python -m linear_transformer.analysis.curves --runs='runs/recall/needle-*' --by=length \
        --metric=sequences

A number of 7 digits in 512 bytes of noise, asked for at the end; `sequences` is the share of
answers without a wrong digit, each digit read after the true ones.  Any mechanism of
configs/mechanisms.py is a variant.

Published are 1.3-billion-parameter language models that were not trained for it, on 1K to 8K tokens
(Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464, table 2, S-NIAH-1): DeltaNet 97.4, 96.8,
99.0, 98.8 %; Mamba2 99.2, 98.8, 65.4, 30.4; Gated DeltaNet 98.4, 88.4, 91.4, 91.8.  Here a model of
width 64 is trained for it, for 2,000 steps of 32, and tested on up to 4,096 bytes: the numbers do
not compare.  Not run yet.
"""

import ml_collections

from configs.recall import synthetic


def get_config(variant: str = "gated_delta_net") -> ml_collections.ConfigDict:
    config = synthetic.get_config(variant, dataset="needle", options={}, sequence_length=512)
    config.data.batch_size = 32
    config.data.evaluation_examples = 512
    config.data.evaluation_lengths = (1_024, 2_048, 4_096)
    return config
