"""Multi-query associative recall, MQAR (Arora et al. 2023, Zoology, arXiv:2312.04927, figure 2).

    python train.py --config=configs/recall/mqar.py:gated_delta_net
    python eval.py --workdir=runs/recall/mqar-gated_delta_net --split=test
    python -m linear_transformer.analysis.curves --runs='runs/recall/mqar-*' --by=pairs

Any mechanism of configs/mechanisms.py is a variant, with 2 layers without feed-forward.  Training
is on 64 tokens with 4 pairs, tests have 4 to 64 pairs in 64 to 256 tokens, similar to Based (Arora
et al. 2024, arXiv:2402.18668, figure 2: training on up to 64 pairs in 256 tokens, tests on up to
256 pairs in 1,024 tokens).  Both papers have a vocabulary of 8,192, and Zoology trains on 6.4
million examples; here the vocabulary is 256, and a run trains on 2,000 x 128 examples.

The validation accuracy with 4 pairs after 2,000 steps (one seed, 2 shared cores, 2026-11-24) is
100 % for :softmax, :delta_net and :gated_delta_net, 99.95 % for :linear and 26 % for :gla;
docs/recall.md has the curves.
"""

import ml_collections

from configs.recall import synthetic


def get_config(variant: str = "gated_delta_net") -> ml_collections.ConfigDict:
    config = synthetic.get_config(
        variant,
        dataset="multi_query_recall",
        options={"vocab_size": 256, "pairs": 4},
        sequence_length=64,
    )
    config.data.evaluation_options = {
        "pairs": ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64)),
    }
    config.model.feed_forward_width = 0
    return config
