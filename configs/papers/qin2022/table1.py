"""Perplexity without the denominator: table 1 of Qin et al. 2022; see `ablations.py`."""

from configs.papers.qin2022 import experiments

TABLE = experiments.ablation(
    1,
    "the denominator",
    {
        "1 + elu, with scaling": ("one_plus_elu", 4.98),
        "1 + elu, without scaling": ("one_plus_elu_unscaled", 797.08),
    },
)
