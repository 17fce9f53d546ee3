"""Mixers with options, for the tests of what every causal mixer must do.

Every causal mechanism of `MIXERS` is a case with its default options; options worth a test of their
own go in OPTIONS.
"""

from linear_transformer.nn.mixers.recurrent_mixer import RecurrentMixer
from linear_transformer.nn.mixers.registry import MIXERS

B, T, D, H = 3, 21, 8, 2
STEP = 7  # tokens of a call in the middle of a sequence: more than a window, a block or a chunk
WINDOW = 5

OPTIONS = {
    "linear": {
        "chunks": {"chunk_size": 4},
        "rotary": {"rotary": True, "chunk_size": 4},
        "convolution": {"convolution": 4},
        "convolution rotary": {"convolution": 2, "rotary": True},
        "unnormalized": {"normalize": False, "feature_map": "identity"},
        "unnormalized rotary": {"normalize": False, "rotary": True},
        "recurrent": {"form": "recurrent", "key_width": 6},
        "parallel": {"form": "parallel", "bias": False},
        "associative": {"form": "associative"},
        "relu": {"feature_map": "relu", "epsilon": 1e-2},
        "squared_relu": {"feature_map": "squared_relu", "epsilon": 1e-2},
        "softmax": {"feature_map": "softmax"},
        "exp": {"feature_map": "exp"},
        "dpfp": {"feature_map": "dpfp", "nu": 2, "epsilon": 1e-2, "chunk_size": 4},
        "lrpe": {"lrpe": True, "chunk_size": 4},
        "output norm": {"output_norm": "rmsnorm"},
    },
    "based": {
        "chunks": {"chunk_size": 4, "key_width": 3},
        "recurrent": {"form": "recurrent"},
    },
    "rebased": {"chunks": {"chunk_size": 4, "key_width": 3, "epsilon": 1e-2}},  # weights near 0
    "hedgehog": {"chunks": {"chunk_size": 4, "key_width": 3}},
    # Enough features that no key is dead to a query.
    "t2r": {"chunks": {"chunk_size": 4, "features": 24}},
    "diag": {
        "relu": {"block_size": 6, "output_norm": "simplermsnorm", "lrpe": True},
        "softmax block": {"block_size": 6, "scores": "softmax", "lrpe": True},
        "relu without norm": {"block_size": 6, "bias": False},
        "blocks of 3": {"block_size": 3, "scores": "softmax"},
        "one block": {"scores": "softmax"},
    },
    "parallel": {
        "block": {"branches": {"diag": {"block_size": 6, "scores": "softmax"}, "norm": {}}}
    },
    "softmax": {
        "cache": {"cache_capacity": T},
        "window": {"window": WINDOW},
        "window of 1": {"window": 1},
        "rotary": {"rotary": True, "cache_capacity": 3 * T},
        "window rotary": {"rotary": True, "window": WINDOW, "bias": False},
        "blockwise": {"form": "blockwise", "window": WINDOW},
        "grouped": {"key_value_heads": 1, "cache_capacity": T},
        "qk norm": {
            "qk_norm": True,
            "key_value_heads": 1,
            "rotary": True,
            "cache_capacity": T,
        },
        "wide heads": {
            "query_heads": 4,
            "key_value_heads": 2,
            "key_width": 6,
            "output_gate": True,
            "rotary": True,
            "cache_capacity": T,
        },
        "output gate": {"output_gate": True, "cache_capacity": T},
        "sinks": {"sinks": True, "key_value_heads": 1, "cache_capacity": T},
        "partly rotary": {"rotary": True, "rotary_fraction": 0.5, "sinks": True, "window": WINDOW},
        "grouped window": {"key_value_heads": 1, "form": "blockwise", "window": WINDOW},
    },
    "fox": {
        "cache": {"cache_capacity": T},
        "window": {"window": WINDOW},
        "all": {
            "query_heads": 4,
            "key_value_heads": 1,
            "key_width": 6,
            "qk_norm": True,
            "output_gate": True,
            "rotary": True,
            "form": "blockwise",
            "cache_capacity": T,
        },
    },
    "sparse": {
        "cache": {"block_size": 4, "summary": 2, "cache_capacity": T},
        "strided": {
            "pattern": "strided",
            "block_size": 4,
            "cache_capacity": T,
            "rotary": True,
            "bias": False,
        },
    },
    "synthesizer": {
        "cache": {"length": 2 * T},
        "random": {"variant": "random", "length": T},
    },
    "transformer_xl": {"window": {"window": WINDOW}},
    "adaptive_span": {"window": {"window": WINDOW, "ramp": 8}},  # no mask of 0
    "flash": {
        "chunks": {"chunk_size": 4, "key_width": 6, "bias": False},
        "one chunk": {"key_width": 6, "expansion": 1},
        "chunks of 1": {"chunk_size": 1, "key_width": 6, "rotary": False},
    },
    "flash_quad": {
        "cache": {"key_width": 6, "divisor": 1, "cache_capacity": T, "bias": False},
        "no rotary": {"key_width": 4, "divisor": 2, "rotary": False, "bias": False},
    },
    "rela": {
        "cache": {"cache_capacity": T},
        "window": {"window": WINDOW},
        "window of 1": {"window": 1},
        "window rotary": {"window": WINDOW, "rotary": True},
    },
    "efficient": {
        "chunks": {"chunk_size": 4},
        "recurrent": {"form": "recurrent", "key_width": 6, "bias": False},
    },
    "performer": {
        "chunks": {"chunk_size": 4, "features": 12},
        "relu kernel": {"kernel": "relu", "features": 12},
    },
    "cosformer": {
        # Enough features that no key is dead to a query.
        "chunks": {"chunk_size": 4, "max_length": 2 * T, "key_width": 16},
    },
    "rfa": {
        "chunks": {"chunk_size": 4},
        "gate": {"gate": True, "chunk_size": 4, "learn_scale": False},
    },
    "retnet": {
        "chunks": {"chunk_size": 4},
        "plain": {"rotary": False, "normalize": False, "value_expansion": 1},
    },
    "lightning": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "lightning_lrpe": {"lrpe": {"depth": 0.9}},
    "mamba2": {
        "chunks": {"chunk_size": 4, "state_width": 6},
        "groups": {"groups": 2, "state_width": 3, "convolution": 2, "expansion": 1},
    },
    "log_linear": {"chunks": {"max_length": 2 * T, "chunk_size": 4}},
    "log_linear_mamba2": {"chunks": {"max_length": 2 * T, "state_width": 6, "chunk_size": 4}},
    "mamba3": {
        "chunks": {"chunk_size": 4, "state_width": 8},
        "real": {"rotary_fraction": 0.0, "state_width": 6, "groups": 2},
        "rank": {"rank": 3, "chunk_size": 4, "state_width": 4, "groups": 2},
    },
    "mlstm": {"chunks": {"chunk_size": 4}},
    "gla": {"chunks": {"chunk_size": 4}},
    "gsa": {"chunks": {"chunk_size": 4, "slots": 6}},
    "hgrn2": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "rwkv6": {"chunks": {"chunk_size": 4, "depth": 0.5}},
    "lion": {
        "chunks": {"chunk_size": 4},
        "scalar": {"gate": "scalar"},
    },
    "mamba": {
        "chunks": {"chunk_size": 4, "state_width": 3, "dt_rank": 2},
        "negative": {"negative_eigenvalues": True, "state_width": 3},
    },
    "lru": {"chunks": {"chunk_size": 4, "state_width": 6}},
    "rg_lru": {"chunks": {"chunk_size": 4, "state_width": 6}},
    "lsh": {
        "cache": {"rounds": 2, "buckets": 4, "chunk_size": 3, "cache_capacity": T},
        "one round": {"rounds": 1, "buckets": 2, "chunk_size": T},
    },
    "delta_net": {
        "chunks": {"chunk_size": 4, "key_width": 6},
        "recurrent": {"form": "recurrent", "negative_eigenvalues": True},
        "associative": {"form": "associative", "convolution": 2},
    },
    "gated_delta_net": {
        "chunks": {"chunk_size": 4, "negative_eigenvalues": True},
        "one key head": {"key_heads": 1, "key_width": 6, "value_width": 3},
    },
    "delta_product": {"chunks": {"chunk_size": 8, "steps": 3}},
    "kda": {
        "chunks": {"chunk_size": 4, "key_width": 6},
        "bounded": {"lower_bound": -5.0, "negative_eigenvalues": True},
        "one key head": {"key_heads": 1, "chunk_size": 4, "value_width": 5},
    },
    "gdn2": {"chunks": {"chunk_size": 4, "key_width": 6, "negative_eigenvalues": True}},
    "rwkv7": {
        "chunks": {"chunk_size": 8, "depth": 0.5},
        "value residual": {"value_residual": True, "value_rank": 3},
    },
}
CASES = [
    (name, label)
    for name, mechanism in MIXERS.items()
    for label in OPTIONS.get(name, {"default": {}})
    if mechanism.causal
]
# Options that act on each token by itself or that are in another case too, other sizes of blocks,
# and forms and gates that `tests/ops/contract_test.py` compares.
REPEATED = {
    "linear": (
        *("convolution rotary", "unnormalized", "recurrent", "parallel", "relu", "squared_relu"),
        *("softmax", "exp", "dpfp", "output norm"),
    ),
    "based": ("recurrent",),
    "diag": ("relu without norm", "blocks of 3", "one block"),
    "softmax": ("rotary", "window rotary", "blockwise", "qk norm", "output gate", "sinks"),
    "flash": ("one chunk", "chunks of 1"),
    "flash_quad": ("no rotary",),
    "rela": ("window of 1", "window rotary"),
    "efficient": ("recurrent",),
    "performer": ("relu kernel",),
    "lion": ("scalar",),
    "mamba": ("negative",),
    "lsh": ("one round",),
    "delta_net": ("recurrent", "associative"),
    "kda": ("bounded", "one key head"),
}
DISTINCT = [(name, label) for name, label in CASES if label not in REPEATED.get(name, ())]
# The options that change how a state is kept; the others are pointwise or only change the form.
CORE = [
    case
    for case in CASES
    if case[0] not in OPTIONS
    or case[1] in ("chunks", "convolution", "cache", "window", "softmax block", "block")
    or case in (("linear", "rotary"), ("diag", "relu"), ("softmax", "grouped"), ("mamba3", "rank"))
]
# `RecurrentMixer` carries the state of its subclasses, which see the recurrent state of one segment
# only.  So one of them is enough for each kind of that state and of the layers with their own one.
SUBCLASSES = ("efficient", "gla", "delta_net", "rwkv7", "mlstm", "lru")


def carries_its_state(name):
    return getattr(MIXERS[name].mixer, "_forward", None) is not RecurrentMixer._forward


CARRIERS = [c for c in CORE if c[0] in SUBCLASSES or c[1] != "chunks" or carries_its_state(c[0])]
# Mixers in which a token may have no influence at all, since a weight may be exactly 0.
SPARSE = ("flash", "flash_quad", "rela", "lsh", "sparse")


def options_of(name, label):
    return OPTIONS.get(name, {}).get(label, {})
