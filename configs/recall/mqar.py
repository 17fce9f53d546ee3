"""Multi-query associative recall, MQAR (Arora et al. 2023, Zoology, arXiv:2312.04927, figure 2).

    python train.py --config=configs/recall/mqar.py:gated_delta_net
    python eval.py --workdir=runs/recall/mqar-gated_delta_net --split=test

Any mechanism of configs/mechanisms.py is a variant: 2 layers without feed-forward, 64 tokens with 4
pairs.  The paper's vocabulary is 8,192 and it sees 6.4 million examples; here the vocabulary is 256
and a run sees 2,000 x 128, meant to take minutes on 2 CPU cores.  Not run yet.
"""

import ml_collections

from configs import default


def get_config(variant: str = "gated_delta_net") -> ml_collections.ConfigDict:
    config = default.get_config(variant, width=64, num_layers=2)
    config.task = "synthetic"
    config.sample = False
    config.num_steps = 2_000
    config.log_every = 100
    config.eval_every = config.checkpoint_every = 500
    config.data = ml_collections.ConfigDict(
        {
            "dataset": "multi_query_recall",
            "options": {"vocab_size": 256, "pairs": 4},
            "batch_size": 128,
            "sequence_length": 64,
            "evaluation_examples": 1_024,
            "evaluation_lengths": (),
        }
    )
    config.model.update(num_heads=2, feed_forward_width=0)
    config.optimizer.update(name="adamw", learning_rate=3e-3, clip_norm=1.0)
    return config
