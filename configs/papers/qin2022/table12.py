"""Combinations of the two attentions: table 12 of Qin et al. 2022; see `ablations.py`."""

from configs.papers.qin2022 import experiments

TABLE = experiments.ablation(
    12,
    "the combination of DiagAttention and NormAttention",
    {
        "alternating": ("alternating", 4.19),
        "parallel": ("parallel", 3.77),
        "serial": ("split_6_6", 3.82),
    },
    note="Parallel costs twice as much.",
)
