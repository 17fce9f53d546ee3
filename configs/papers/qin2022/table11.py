"""Block sizes of DiagAttention: table 11 of Qin et al. 2022; see `ablations.py`."""

from configs.papers.qin2022 import experiments

TABLE = experiments.ablation(
    11,
    "the size of the blocks of DiagAttention",
    {
        "32 tokens": ("block_32", 3.92),
        "64 tokens": ("split_6_6", 3.82),
        "128 tokens": ("block_128", 3.72),
    },
)
