"""The mechanisms by name: what `config.model` says of each, at any size.

    python train.py --config=configs/default.py:performer

A language-model config takes one of these names after the colon.  Positions, feed-forward and
depth go with the mechanism: a unit that gates itself has no feed-forward and twice the layers.
"""

from typing import Any

import ml_collections

from linear_transformer.errors import ConfigError

# Mixer, its options, and further choices of config.model: "feed_forward" is its width over the
# model's, "layers" their number over the given one.  Softmax attention, FLASH-quad and LSH decode
# from a cache; training ignores its capacity.
_MIXERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # A short convolution knows the local order, and then no positions are needed.
    "linear": (
        "linear",
        {"feature_map": "elu_plus_one", "convolution": 4},
        {"positions": "none"},
    ),
    "katharopoulos": ("linear", {"feature_map": "elu_plus_one"}, {}),
    "softmax": ("softmax", {"cache_capacity": 1024}, {}),
    "efficient": ("efficient", {}, {}),
    "performer": ("performer", {"kernel": "softmax", "features": 64}, {}),
    "cosformer": ("cosformer", {"max_length": 1024}, {}),
    "rfa": ("rfa", {"features": 64, "gate": True}, {}),
    "rela": ("rela", {"window": 64}, {}),
    "lsh": ("lsh", {"rounds": 4, "buckets": 16, "chunk_size": 32, "cache_capacity": 1024}, {}),
    # Units that gate themselves.
    "flash": ("flash", {"chunk_size": 64, "key_width": 64}, {"layers": 2, "feed_forward": 0}),
    "flash_quad": (
        "flash_quad",
        {"divisor": 256, "key_width": 64, "cache_capacity": 1024},
        {"layers": 2, "feed_forward": 0},
    ),
    "mamba": ("mamba", {}, {"positions": "none", "layers": 2, "feed_forward": 0}),
    "mamba2": ("mamba2", {}, {"positions": "none", "layers": 2, "feed_forward": 0}),
    # Decays and convolutions know the order.
    "retnet": ("retnet", {}, {"positions": "none", "feed_forward": 2}),
    "mlstm": ("mlstm", {}, {"positions": "none"}),
    "gla": ("gla", {}, {"positions": "none"}),
    "hgrn2": ("hgrn2", {}, {"positions": "none"}),
    "rwkv6": ("rwkv6", {}, {"positions": "none"}),
    "lion": ("lion", {}, {"positions": "none"}),
    "delta_net": ("delta_net", {"negative_eigenvalues": False}, {"positions": "none"}),
    "gated_delta_net": ("gated_delta_net", {"negative_eigenvalues": False}, {"positions": "none"}),
    "delta_product": ("delta_product", {}, {"positions": "none"}),
    "kda": ("kda", {"negative_eigenvalues": False}, {"positions": "none"}),
    "rwkv7": ("rwkv7", {}, {"positions": "none"}),
    "lru": ("lru", {}, {"positions": "none"}),
}
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
    "positions": "none",
}
NAMES = (*_MIXERS, "transnormer_t1", "transnormer_t2", "lightning", "hybrid")


def gated_width(width: int) -> int:
    """Feed-forward width with which a gate costs no parameters: int(8/3 D)."""
    return 8 * width // 3


def transnormer(kind: str, *, width: int, num_layers: int) -> dict[str, Any]:
    """TransNormer T1 or T2 (Qin et al. 2022): blocks first, NormAttention after."""
    return {
        "pattern": ("diag",) * (num_layers // 2) + ("norm",) * (num_layers - num_layers // 2),
        "mixers": {"diag": DIAG[kind], "norm": NORM[kind]},
        "num_layers": num_layers,
        "feed_forward_width": gated_width(width),
        "gated": True,
        "activation": "silu",
        "norm": "simplermsnorm",
    }


def transnormer_llm(*, width: int, num_layers: int) -> dict[str, Any]:
    """TransNormerLLM (Qin et al. 2024, arXiv:2405.17381): decays, and LRPE in the first layer."""
    return {
        "pattern": ("lightning_lrpe",) + ("lightning",) * (num_layers - 1),
        "mixers": {"lightning_lrpe": {}, "lightning": {}},
        "feed_forward_width": gated_width(width),
        "gated": True,
        "activation": "identity",
        "norm": "simplermsnorm",
        "positions": "none",
    }


def repeats(model: ml_collections.ConfigDict) -> bool:
    """Whether the layers are several repetitions of a pattern, which can be scanned over."""
    repetitions, rest = divmod(model.num_layers, len(model.pattern))
    return repetitions > 1 and rest == 0


def model(name: str, *, width: int, num_layers: int) -> dict[str, Any]:
    """The entries of `config.model` that a mechanism decides.

    Raises:
      ConfigError: there is no such mechanism.
    """
    if name not in NAMES:
        raise ConfigError(f"--config=...:{name}: the variants are {', '.join(NAMES)}")
    mixer, options, more = _MIXERS.get(name, (name, {}, {}))
    layers, feed_forward = more.get("layers", 1), more.get("feed_forward", 4)
    choices = {
        "pattern": (mixer,),
        "mixers": {mixer: options},
        "num_layers": layers * num_layers,
        "feed_forward_width": feed_forward * width,
        "gated": False,
        "activation": "gelu",
        "norm": "layernorm",
        "positions": more.get("positions", "sinusoidal"),
    }
    if name == "hybrid":
        return choices | HYBRID
    if name == "lightning":
        return choices | transnormer_llm(width=width, num_layers=num_layers)
    if name.startswith("transnormer"):
        return choices | transnormer(name[-2:], width=width, num_layers=num_layers)
    return choices
