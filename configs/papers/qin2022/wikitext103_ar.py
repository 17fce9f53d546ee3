"""WikiText-103, words, autoregressive: table 4 of Qin et al. 2022 (arXiv:2210.10340).

    python train.py --config=configs/papers/qin2022/wikitext103_ar.py:t2 \
        --config.data.path=FOLDER_WITH_wikitext-103-v1.zip
    python eval.py --workdir=runs/papers/qin2022/wikitext103_ar --split=test

Published perplexity per word:

    variant         model                        validation   test    parameters
    :vanilla        softmax attention            29.63        31.01   156M
    :one_plus_elu   linear attention, 1 + elu    32.63        34.25   156M
    :t1             TransNormer T1               -            -       156M
    :t2             TransNormer T2               29.57        31.01   156M

All four models have 6 layers of width 512, 8 heads, tied embeddings of 267,744 words in the paper
(267,736 here), sinusoidal positions and pre-norm.  They are trained on 128 rows of 512 tokens per
step for 100,000 steps, with Adam(0.9, 0.98), decoupled weight decay 0.01, 8,000 steps of warm-up to
5e-4, then the inverse square root.  T1 and T2 have 3 layers of DiagAttention in blocks of 64, then
3 of NormAttention, LRPE in all 6, and a gated feed-forward of int(8/3 512) = 1365.  Later versions
of the released code have no activation in the gate: `--config.model.activation=identity`.  The
released code initialises queries, keys and values with half the variance of this project.

Training needs accelerators (8 GPUs in the paper); the config was not run here.
"""

import ml_collections

from configs import default, mechanisms
from linear_transformer.errors import ConfigError

VARIANTS = ("t1", "t2", "vanilla", "one_plus_elu")


def model(variant: str) -> dict:
    """Returns the entries of `config.model` that differ between variants.

    Raises:
      ConfigError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"--config=...:{variant}: the variants are {', '.join(VARIANTS)}")
    if variant in mechanisms.DIAG:
        return mechanisms.transnormer(variant)
    mixers = {"vanilla": {"softmax": {}}, "one_plus_elu": {"linear": {}}}[variant]
    return {
        "pattern": tuple(mixers),
        "mixers": mixers,
        "gated": False,
        "activation": "relu",
        "norm": "layernorm",
    }


def get_config(variant: str = "t2") -> ml_collections.ConfigDict:
    config = default.get_config()
    config.num_steps = 100_000
    config.log_every = 100
    config.eval_every = 5_000
    config.checkpoint_every = 5_000
    config.data.update(
        dataset="wikitext103",
        tokenizer="words",
        packing="contiguous",
        batch_size=128,
        sequence_length=512,
    )
    choices = model(variant)
    config.model.mixers = ml_collections.ConfigDict(choices.pop("mixers"))
    config.model.update(
        width=512,
        num_layers=6,
        num_heads=8,
        positions="sinusoidal",
        norm_position="pre",
        dropout=0.1,
        tied=True,
        **choices,
    )
    config.optimizer.update(
        name="adamw",
        learning_rate=5e-4,
        weight_decay=0.01,
        options={"b1": 0.9, "b2": 0.98},
        schedule="rsqrt",
        warmup_steps=8_000,
        clip_norm=0.0,
    )
    return config
