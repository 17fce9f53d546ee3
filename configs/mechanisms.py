"""Mechanisms by name, with their entries of `config.model` at any size.

    python train.py --config=configs/default.py:performer
    python -m linear_transformer.cli.mechanisms

The second command lists all mechanisms: the mixers of linear_transformer/nn/mixers, and the
compositions of mixers in this file.  Positions, feed-forward and depth depend on the mechanism: a
gated attention unit has no feed-forward and twice the layers.  Values of None or "auto" are set
when the model is made, from mixers, width and data, including changes on the command line.
"""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import ml_collections

from linear_transformer.errors import ConfigError
from linear_transformer.nn.mixers.mechanism import Mechanism
from linear_transformer.nn.mixers.registry import MIXERS

DIAG = {
    "t1": {"scores": "relu", "output_norm": "simplermsnorm", "block_size": 64, "lrpe": True},
    "t2": {"scores": "softmax", "output_norm": None, "block_size": 64, "lrpe": True},
}
NORM = {
    "t1": {"feature_map": "elu", "output_norm": "simplermsnorm", "lrpe": True},
    "t2": {"feature_map": "elu_plus_one", "output_norm": "simplermsnorm", "lrpe": True},
}


def transnormer(kind: str) -> dict[str, Any]:
    """TransNormer T1 or T2 (Qin et al. 2022): first DiagAttention, then NormAttention layers."""
    return {
        "pattern": ("diag", "norm"),
        "pattern_fill": "stretch",
        "mixers": {"diag": DIAG[kind], "norm": NORM[kind]},
        "gated": True,
        "activation": "silu",
        "norm": "simplermsnorm",
    }


GATED_MLP = {"gated": True, "activation": "silu", "norm": "rmsnorm"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composition:
    """Model composed of mixers, with a name of its own.

    Attributes:
      meaning, source: see `Mechanism`.
      model: entries of `config.model`.
    """

    meaning: str
    source: str
    model: Mapping[str, Any]
    causal: ClassVar[bool] = True


COMPOSITIONS = {
    "katharopoulos": Composition(
        meaning="linear attention without a convolution, as published",
        source="Katharopoulos et al. 2020, arXiv:2006.16236",
        model={"pattern": ("linear",), "mixers": {"linear": {"feature_map": "elu_plus_one"}}},
    ),
    **{
        f"transnormer_{kind}": Composition(
            meaning=f"TransNormer {kind.upper()}: half of the layers diag, the other half norm",
            source="Qin et al. 2022, arXiv:2210.10340, section 4",
            model=transnormer(kind),
        )
        for kind in ("t1", "t2")
    },
    "lightning": Composition(
        meaning="TransNormerLLM: lightning attention, with LRPE in the first layer",
        source="Qin et al. 2024, arXiv:2405.17381",
        model={
            "pattern": ("lightning_lrpe", "lightning"),
            "pattern_fill": "last",
            "mixers": {"lightning_lrpe": {}, "lightning": {}},
            "gated": True,
            "activation": "identity",
            "norm": "simplermsnorm",
        },
    ),
    "local": Composition(
        meaning="softmax attention inside blocks of 64 tokens: the local attention of LRA",
        source="Tay et al. 2021, arXiv:2011.04006, section 3.2",
        model={
            "pattern": ("diag",),
            "mixers": {"diag": {"scores": "softmax", "block_size": 64}},
        },
    ),
    "hybrid": Composition(
        meaning="three layers of gated_delta_net, then one of softmax over a window of 64 tokens",
        source="this project",
        model={
            "pattern": ("gated_delta_net",) * 3 + ("softmax",),
            "mixers": {"gated_delta_net": {}, "softmax": {"window": 64}},
        },
    ),
    "qwen3_next": Composition(
        meaning="three layers of gated_delta_net, then one of gated softmax with partial rotary",
        source="Qwen Team 2025, Qwen3-Next",
        model={
            "pattern": ("gated_delta_net",) * 3 + ("softmax",),
            "mixers": {
                "gated_delta_net": {},
                "softmax": {
                    "output_gate": True,
                    "qk_norm": True,
                    "rotary": True,
                    "rotary_fraction": 0.25,
                    "cache_capacity": 1024,
                },
            },
            **GATED_MLP,
        },
    ),
    "kimi_linear": Composition(
        meaning="three layers of kda, then one of softmax without positions",
        source="Kimi Team 2025, arXiv:2510.26692, section 4",
        model={
            "pattern": ("kda",) * 3 + ("softmax",),
            "mixers": {"kda": {}, "softmax": {"cache_capacity": 1024}},
            **GATED_MLP,
        },
    ),
    "samba": Composition(
        meaning="a layer of mamba, then one of softmax over a window of 2,048 tokens",
        source="Ren et al. 2024, arXiv:2406.07522, section 2",
        model={
            "pattern": ("mamba", "softmax"),
            "mixers": {"mamba": {}, "softmax": {"window": 2048, "rotary": True}},
            **GATED_MLP,
        },
    ),
    "griffin": Composition(
        meaning="two layers of rg_lru, then one of softmax over a window of 1,024 tokens",
        source="De et al. 2024, arXiv:2402.19427, section 2",
        model={
            "pattern": ("rg_lru", "rg_lru", "softmax"),
            "mixers": {
                "rg_lru": {},
                "softmax": {"window": 1024, "rotary": True, "key_value_heads": 1},
            },
            **GATED_MLP,
            "activation": "gelu",
        },
    ),
}
# A composition takes precedence over a mixer of the same name.
TABLE: dict[str, Mechanism | Composition] = dict(sorted({**MIXERS, **COMPOSITIONS}.items()))
NAMES = tuple(name for name, mechanism in TABLE.items() if mechanism.causal)


def model(name: str, *, num_layers: int, names: Collection[str] = NAMES) -> dict[str, Any]:
    """Returns the entries of `config.model` that depend on the mechanism.

    Args:
      name: a name in `TABLE`.
      num_layers: number of layers of attention and feed-forward.
      names: allowed names; the default is all causal mechanisms.

    Raises:
      ConfigError: the name is not allowed.
    """
    if name not in names:
        near = difflib.get_close_matches(name, names)
        raise ConfigError(
            f"--config=...:{name}: the variants are the names that "
            "`python -m linear_transformer.cli.mechanisms` lists"
            + (f"; the nearest are {', '.join(near)}" if near else "")
        )
    choices = {
        "num_layers": num_layers,
        "pattern_fill": "repeat",
        "feed_forward_width": None,
        "feed_forward_ratio": None,
        "gated": False,
        "activation": "gelu",
        "norm": "layernorm",
        "positions": "auto",
    }
    if name in COMPOSITIONS:
        return {**choices, **COMPOSITIONS[name].model}
    return choices | {
        "num_layers": num_layers * MIXERS[name].layers,
        "pattern": (name,),
        "mixers": {name: dict(MIXERS[name].options)},
    }


def follow_data(mixers: ml_collections.ConfigDict | dict[str, dict[str, Any]]) -> None:
    """Lets the lengths in options of mixers follow the longest row of the data."""
    for name, options in mixers.items():
        length = MIXERS[name].length_option
        if length is not None:
            options[length] = None
