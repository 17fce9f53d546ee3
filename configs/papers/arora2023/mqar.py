"""Multi-query associative recall, 4 pairs in 64 tokens: Zoology (Arora et al. 2023), figure 2.

    python train.py --config=configs/papers/arora2023/mqar.py:softmax \
        --config.optimizer.learning_rate=2.15e-3
    python eval.py --workdir=runs/papers/arora2023/mqar-softmax-learning_rate=2.15e-3 --split=test

Any mechanism of configs/mechanisms.py is a variant.  As released (arXiv:2312.04927): a
vocabulary of 8,192; 100,000 training examples and 3,000 test examples; 2 layers of width 64 with
one head and without feed-forward; learned positions for softmax attention; at most 64 epochs in
batches of 512 with AdamW, a weight decay of 0.1, a cosine to 0 and the best of four learning rates,
1e-4 to 1e-2; an accuracy of 0.99 ends the training.

Differences: the cosine falls at every step instead of every epoch; mechanisms of this project that
have a short convolution keep it.
"""

import ml_collections

from configs import default

RATES = (1e-4, 4.64e-4, 2.15e-3, 1e-2)
_STEPS = 100_000 // 512  # of an epoch


def get_config(variant: str = "softmax") -> ml_collections.ConfigDict:
    config = default.get_config(variant, width=64, num_layers=2)
    config.task = "synthetic"
    config.sample = False
    config.num_steps = 64 * _STEPS
    config.log_every = config.eval_every = config.checkpoint_every = _STEPS
    config.eval_batches = 6  # all of them
    config.stop_when = "accuracy >= 0.99"
    config.data = ml_collections.ConfigDict(
        {
            "dataset": "multi_query_recall",
            "options": {"vocab_size": 8_192, "pairs": 4},
            "batch_size": 512,
            "sequence_length": 64,
            "training_examples": 100_000,
            "evaluation_examples": 3_000,
            "evaluation_lengths": (),
            "evaluation_options": {},
        }
    )
    config.model.update(num_heads=1, feed_forward_width=0)
    if variant == "softmax":
        config.model.positions = "learned"
    config.optimizer.update(
        name="adamw",
        learning_rate=2.15e-3,
        warmup_steps=0,
        final_fraction=0.0,
        weight_decay=0.1,
        clip_norm=0.0,
    )
    return config
