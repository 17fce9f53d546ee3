"""Numbers of layers of each attention: table 8 of Qin et al. 2022; see `ablations.py`."""

from configs.papers.qin2022 import experiments

TABLE = experiments.ablation(
    8,
    "layers of DiagAttention and of NormAttention",
    {
        "0 Diag, 12 Norm": ("split_0_12", 4.23),
        "6 Diag, 6 Norm": ("split_6_6", 3.82),
        "12 Diag, 0 Norm": ("split_12_0", 4.75),
    },
)
