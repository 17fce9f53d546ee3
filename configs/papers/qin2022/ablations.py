"""Ablations of Qin et al. 2022, tables 1, 3 and 8 to 12: bidirectional, WikiText-103.

    python train.py --config=configs/papers/qin2022/ablations.py:block_32 \
        --config.data.path=FOLDER_WITH_wikitext-103-v1.zip --config.data.tokenizer=gpt2.json
    python train.py --config=configs/papers/qin2022/ablations.py:block_32,small

Each variant changes one thing in the setting of `wikitext103_bidirectional.py`.  Published
perplexity of masked tokens:

    table 1    :one_plus_elu              1 + elu, normalised                       4.98
               :one_plus_elu_unscaled     1 + elu without the denominator         797.08
    table 3    :one_plus_elu              1 + elu in all layers                     4.98
               :linear_softmax            6 layers 1 + elu, 6 layers softmax        3.90
               :softmax_linear            6 layers softmax, 6 layers 1 + elu        3.76
    table 8    :split_0_12                NormAttention in all layers               4.23
               :split_6_6                 6 layers Diag, 6 layers Norm              3.82
               :split_12_0                DiagAttention in all layers               4.75
    table 9    :norm_first                Norm early, Diag late                     4.13
               :split_6_6                 Diag early, Norm late                     3.82
    table 10   :ffn                       plain feed-forward of 4 D                 3.93
               :split_6_6                 gated feed-forward of 8/3 D               3.82
    table 11   :block_32                  blocks of 32 tokens                       3.92
               :split_6_6                 blocks of 64                              3.82
               :block_128                 blocks of 128                             3.72
    table 12   :alternating               Diag, Norm, Diag, Norm, ...               4.19
               :parallel                  both in each layer (twice the cost)       3.77
               :split_6_6                 in series                                 3.82

All are variants of T2 here, which is an assumption: the tables may be about T1.

`,small` is a pre-norm model of width 128 on Shakespeare in bytes, for 2 CPU cores: use it to
compare variants, not to reproduce numbers.  The published setting needs accelerators; it was not
run here.
"""

import ml_collections

from configs import mechanisms
from configs.papers.qin2022 import wikitext103_ar, wikitext103_bidirectional

KIND = "t2"
DIAG, NORM = mechanisms.DIAG[KIND], mechanisms.NORM[KIND]

# Changes of each variant to the model of TransNormer, or to the baseline with 1 + elu.
BASELINES = {
    "one_plus_elu": {"pattern": ("linear",)},
    "one_plus_elu_unscaled": {"mixers": {"linear": {"normalize": False}}},
    "linear_softmax": {
        "pattern": ("linear", "softmax"),
        "pattern_fill": "stretch",
        "mixers": {"linear": {}, "softmax": {}},
    },
    "softmax_linear": {
        "pattern": ("softmax", "linear"),
        "pattern_fill": "stretch",
        "mixers": {"linear": {}, "softmax": {}},
    },
}
ABLATIONS = {
    "split_6_6": {},
    "split_0_12": {"pattern": ("norm",), "mixers": {"norm": NORM}},
    "split_12_0": {"pattern": ("diag",), "mixers": {"diag": DIAG}},
    "norm_first": {"pattern": ("norm", "diag")},
    "ffn": {"gated": False, "activation": "relu"},
    "block_32": {"mixers": {"diag": DIAG | {"block_size": 32}, "norm": NORM}},
    "block_128": {"mixers": {"diag": DIAG | {"block_size": 128}, "norm": NORM}},
    "alternating": {"pattern_fill": "repeat"},
    "parallel": {
        "pattern": ("parallel",),
        "mixers": {"parallel": {"branches": {"diag": DIAG, "norm": NORM}}},
    },
}
VARIANTS = (*ABLATIONS, *BASELINES)


def get_config(variant: str = "split_6_6") -> ml_collections.ConfigDict:
    name, small = wikitext103_bidirectional.parse(variant, VARIANTS)
    base = KIND if name in ABLATIONS else "one_plus_elu"
    choices = wikitext103_ar.model(base)
    choices |= ABLATIONS[name] if name in ABLATIONS else BASELINES[name]
    return wikitext103_bidirectional.masked(choices, small)
