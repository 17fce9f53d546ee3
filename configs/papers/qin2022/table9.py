"""Order of the two attentions: table 9 of Qin et al. 2022; see `ablations.py`."""

from configs.papers.qin2022 import experiments

TABLE = experiments.ablation(
    9,
    "the order of DiagAttention and NormAttention",
    {
        "Norm early, Diag late": ("norm_first", 4.13),
        "Diag early, Norm late": ("split_6_6", 3.82),
    },
)
