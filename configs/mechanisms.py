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
    "hybrid": Composition(
        meaning="three layers of gated_delta_net, then one of softmax over a window of 64 tokens",
        source="this project",
        model={
            "pattern": ("gated_delta_net",) * 3 + ("softmax",),
            "mixers": {"gated_delta_net": {}, "softmax": {"window": 64}},
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
