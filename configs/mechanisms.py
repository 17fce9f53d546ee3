"""The mechanisms by name: what `config.model` says of each, at any size.

    python train.py --config=configs/default.py:performer

A language-model config takes one of these names after the colon.  Positions, feed-forward and
depth go with the mechanism: a unit that gates itself has no feed-forward and twice the layers.
What is None or "auto" here follows from the mixers, the width and the data when the model is made,
and so from what the command line changes.
"""

from typing import Any

from linear_transformer.errors import ConfigError

# Mixer and its options.  Softmax attention, FLASH-quad and LSH decode from a cache, whose capacity
# training ignores.
_MIXERS: dict[str, tuple[str, dict[str, Any]]] = {
    # A short convolution knows the local order, and then no positions are needed.
    "linear": ("linear", {"feature_map": "elu_plus_one", "convolution": 4}),
    "katharopoulos": ("linear", {"feature_map": "elu_plus_one"}),
    "softmax": ("softmax", {"cache_capacity": 1024}),
    "efficient": ("efficient", {}),
    "performer": ("performer", {"kernel": "softmax", "features": 64}),
    "cosformer": ("cosformer", {"max_length": 1024}),
    "rfa": ("rfa", {"features": 64, "gate": True}),
    "rela": ("rela", {"window": 64}),
    "lsh": ("lsh", {"rounds": 4, "buckets": 16, "chunk_size": 32, "cache_capacity": 1024}),
    "flash": ("flash", {"chunk_size": 64, "key_width": 64}),
    "flash_quad": ("flash_quad", {"divisor": None, "key_width": 64, "cache_capacity": 1024}),
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", {}),
    "retnet": ("retnet", {}),
    "mlstm": ("mlstm", {}),
    "gla": ("gla", {}),
    "hgrn2": ("hgrn2", {}),
    "rwkv6": ("rwkv6", {}),
    "lion": ("lion", {}),
    "delta_net": ("delta_net", {"negative_eigenvalues": False}),
    "gated_delta_net": ("gated_delta_net", {"negative_eigenvalues": False}),
    "delta_product": ("delta_product", {}),
    "kda": ("kda", {"negative_eigenvalues": False}),
    "rwkv7": ("rwkv7", {}),
    "lru": ("lru", {}),
}
# Without a feed-forward a model has twice the layers.
_TWICE_THE_LAYERS = ("flash", "flash_quad", "mamba", "mamba2")
DIAG = {
    "t1": {"scores": "relu", "output_norm": "simplermsnorm", "block_size": 64, "lrpe": True},
    "t2": {"scores": "softmax", "output_norm": None, "block_size": 64, "lrpe": True},
}
NORM = {
    "t1": {"feature_map": "elu", "output_norm": "simplermsnorm", "lrpe": True},
    "t2": {"feature_map": "elu_plus_one", "output_norm": "simplermsnorm", "lrpe": True},
}
# Three layers with a state of constant size, then one that sees a window exactly.
HYBRID = {
    "pattern": ("gated_delta_net",) * 3 + ("softmax",),
    "mixers": {"gated_delta_net": {}, "softmax": {"window": 64}},
}
# TransNormerLLM (Qin et al. 2024, arXiv:2405.17381): decays, and LRPE in the first layer.
TRANSNORMER_LLM = {
    "pattern": ("lightning_lrpe", "lightning"),
    "pattern_fill": "last",
    "mixers": {"lightning_lrpe": {}, "lightning": {}},
    "gated": True,
    "activation": "identity",
    "norm": "simplermsnorm",
}
NAMES = (*_MIXERS, "transnormer_t1", "transnormer_t2", "lightning", "hybrid")


def transnormer(kind: str) -> dict[str, Any]:
    """TransNormer T1 or T2 (Qin et al. 2022): half of the layers in blocks, then NormAttention."""
    return {
        "pattern": ("diag", "norm"),
        "pattern_fill": "stretch",
        "mixers": {"diag": DIAG[kind], "norm": NORM[kind]},
        "gated": True,
        "activation": "silu",
        "norm": "simplermsnorm",
    }


def model(name: str, *, num_layers: int) -> dict[str, Any]:
    """The entries of `config.model` that a mechanism decides.

    Raises:
      ConfigError: there is no such mechanism.
    """
    if name not in NAMES:
        raise ConfigError(f"--config=...:{name}: the variants are {', '.join(NAMES)}")
    mixer, options = _MIXERS.get(name, (name, {}))
    choices = {
        "pattern": (mixer,),
        "pattern_fill": "repeat",
        "mixers": {mixer: options},
        "num_layers": num_layers * (2 if name in _TWICE_THE_LAYERS else 1),
        "feed_forward_width": None,
        "feed_forward_ratio": None,
        "gated": False,
        "activation": "gelu",
        "norm": "layernorm",
        "positions": "auto",
    }
    if name == "hybrid":
        return choices | HYBRID
    if name == "lightning":
        return choices | TRANSNORMER_LLM
    if name.startswith("transnormer"):
        return choices | transnormer(name[-2:])
    return choices
