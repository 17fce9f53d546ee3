"""Plain and gated feed-forward: table 10 of Qin et al. 2022; see `ablations.py`."""

from configs.papers.qin2022 import experiments

TABLE = experiments.ablation(
    10,
    "the feed-forward",
    {
        "plain feed-forward": ("ffn", 3.93),
        "gated feed-forward (GLU)": ("split_6_6", 3.82),
    },
)
