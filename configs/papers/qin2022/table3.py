"""Softmax and linear attention by depth: table 3 of Qin et al. 2022; see `ablations.py`."""

from configs.papers.qin2022 import experiments

TABLE = experiments.ablation(
    3,
    "early and late layers",
    {
        "1 + elu early, 1 + elu late": ("one_plus_elu", 4.98),
        "1 + elu early, vanilla late": ("linear_softmax", 3.90),
        "vanilla early, 1 + elu late": ("softmax_linear", 3.76),
    },
)
