"""Needle in a haystack of bytes, like S-NIAH-1 of RULER (Hsieh et al. 2024, arXiv:2404.06654).

    python train.py --config=configs/recall/needle.py:gated_delta_net
    python eval.py --workdir=runs/recall/needle-gated_delta_net --split=test
    python -m linear_transformer.analysis.curves --runs='runs/recall/needle-*' --by=length \
        --metric=sequences

A number of 7 digits stands in 512 bytes of noise and is asked for at the end.  `sequences` is the
share of answers without a wrong digit, where each digit is predicted from the true digits before.
Any mechanism of configs/mechanisms.py is a variant.

Published numbers are from language models of 1.3 billion parameters without training on the task,
on 1K to 8K tokens (Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464, table 2, S-NIAH-1):
DeltaNet 97.4, 96.8, 99.0, 98.8 %; Mamba2 99.2, 98.8, 65.4, 30.4; Gated DeltaNet 98.4, 88.4, 91.4,
91.8.  Here a model of width 64 is trained on the task, for 2,000 steps of 32, and tested on up to
4,096 bytes, so its numbers are not comparable.  The config was not run yet.
"""

import ml_collections

from configs.recall import synthetic


def get_config(variant: str = "gated_delta_net") -> ml_collections.ConfigDict:
    config = synthetic.get_config(variant, dataset="needle", options={}, sequence_length=512)
    config.data.batch_size = 32
    config.data.evaluation_examples = 512
    config.data.evaluation_lengths = (1_024, 2_048, 4_096)
    return config
