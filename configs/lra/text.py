"""Text of Long Range Arena (Tay et al. 2021, arXiv:2011.04006, section 2.2.2): IMDb in bytes.

    python train.py --config=configs/lra/text.py:linear,small
    python eval.py --workdir=runs/lra/text-linear,small --split=test

The question is whether a film review is positive or negative.  Variants are the names in
variants.py, alone (Long Range Arena's code: 4 layers of width 256, 20,000 steps of 32, the first
1,000 bytes) or with ",small" (2 layers of width 64, the first 1,024 bytes).
`--config.data.path=FOLDER` names the unpacked folder aclImdb; without it, training and test are
parts of the train half of IMDb, which is not the benchmark's split.  `--config.data.dataset` may
also be newsgroups or spam.

Published accuracy, %:

    linear transformer   65.9   table 1 of the paper: the best of 1,000 to 4,000 bytes
    Performer            65.4   "
    transformer          64.3   "
    TransNormer T2       72.2   in its own setting, 4,096 characters, as cited by others
    LION-S               88.1   in its own setting, 4,096 characters

IMDb has no validation split; Long Range Arena validates on the test split, and S4 and its
successors choose their epoch by the test split.  Here a part of the training split is held out.

Differences: the text of the paper has 6 layers of width 512, unlike its code; padding is masked
here, but not in Long Range Arena's linear transformer; tokens of TransNormer and S5 are characters,
not bytes.

On 2 cores (AMD EPYC, AVX-512, 2026-11-24), `:transnormer_t2,quick` with `--config.num_steps=1000`
classifies 65.9 % of the held-out reviews correctly after 372 s; see docs/lra.md.  The other
variants were not run.
"""

import ml_collections

from configs.lra import variants

SMALL = variants.small(batch_size=32, num_steps=20_000, sequence_length=1_024)
SETTINGS = {
    "lra": variants.Setting(
        num_layers=4,
        width=256,
        num_heads=4,
        feed_forward=1024,
        pooling="cls",
        dropout=0.1,
        batch_size=32,
        num_steps=20_000,
        sequence_length=1_000,
        optimizer=variants.lra_rsqrt(0.05, warmup_steps=8_000),
    ),
    "small": SMALL,
    "quick": variants.quick(SMALL, batch_size=32, num_steps=1_200),
    "transnormer": variants.transnormer(
        num_layers=4,
        feed_forward=4,
        batch_size=64,
        sequence_length=4_096,
        learning_rate=1e-3,
        warmup_steps=80,
    ),
    "lion_s": variants.lion(
        num_layers=6,
        width=256,
        dropout=0.1,
        batch_size=50,
        num_steps=35 * 25_000 // 50,
        sequence_length=4_096,
        weight_decay=0.07,
    ),
}


def get_config(variant: str = "linear,small") -> ml_collections.ConfigDict:
    name, _, scale = variants.parse(variant)
    return variants.get_config(name, scale, SETTINGS, {"dataset": "imdb", "path": ""})
