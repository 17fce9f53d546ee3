"""Six tasks of mechanistic architecture design, MAD (Poli et al. 2024, arXiv:2403.17844).

    python train.py --config=configs/recall/mad.py:fuzzy_recall,gated_delta_net
    python eval.py --workdir=runs/recall/mad-fuzzy_recall,gated_delta_net --split=test

A variant is a task:

    in_context_recall    16 symbols, 128 tokens
    fuzzy_recall         keys and values of 1 to 3 of 16 symbols, 128 tokens; MAD's own test, with
                         keys of 3, is accuracy_at_length_128_shortest_key_3
    noisy_recall         16 symbols and 16 of noise, which replace a fifth of the pairs, 128 tokens
    selective_copying    16 symbols of 14 kinds among blanks, 256 tokens
    memorization         127 facts, 32 tokens
    compression          31 random symbols of 15 kinds from the last output vector

and, after a comma, any mechanism of configs/mechanisms.py (the default is gated_delta_net).  Sizes
of data and model are MAD's (width 128, two mixers and two feed-forwards); the harder settings of
its sweeps are options, such as `--config.data.options.vocab_size=32`.  MAD trains for 200 epochs of
12,800 examples in batches of 128, with the best of the rates 1e-4, 5e-4 and 1e-3 and the weight
decays 0 and 0.1, and a cosine to 1e-6; here training has 2,000 steps with 1e-3 and 0.1.  The config
was not run yet.
"""

import ml_collections

from configs.recall import synthetic
from linear_transformer.errors import ConfigError

# Task -> generator, its options, length.
TASKS = {
    "in_context_recall": ("mad_in_context_recall", {"vocab_size": 16}, 128),
    "fuzzy_recall": ("mad_fuzzy_recall", {"vocab_size": 16}, 128),
    "noisy_recall": ("mad_noisy_recall", {"vocab_size": 32, "noise": 0.2}, 128),
    "selective_copying": ("selective_copying", {"symbols": 14, "count": 16}, 256),
    "memorization": ("mad_memorization", {"vocab_size": 256}, 32),
    "compression": ("mad_compression", {"vocab_size": 16}, 32),
}


def get_config(variant: str = "in_context_recall") -> ml_collections.ConfigDict:
    task, _, mechanism = variant.partition(",")
    if task not in TASKS:
        raise ConfigError(
            f"--config=...:{variant}: the variants are {', '.join(TASKS)}, "
            "each alone or with ',' and a mechanism"
        )
    dataset, options, length = TASKS[task]
    config = synthetic.get_config(
        mechanism or "gated_delta_net",
        dataset=dataset,
        options=options,
        sequence_length=length,
        width=128,
    )
    if task == "fuzzy_recall":
        config.data.evaluation_options = {"shortest_key": ((length, 3),)}
    config.data.evaluation_examples = 1_280
    config.optimizer.update(learning_rate=1e-3, final_fraction=1e-3)
    return config
