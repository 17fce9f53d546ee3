"""The mechanisms by name: what `config.model` says of each, at any size.

    python train.py --config=configs/default.py:performer
    python -m linear_transformer.cli.mechanisms

The second command lists them: every mixer of linear_transformer/nn/mixers, and the models of this
file that are made of mixers.  Positions, feed-forward and depth go with the mechanism: a unit that
gates itself has no feed-forward and twice the layers.  What is None or "auto" here follows from the
mixers, the width and the data when the model is made, and so from what the command line changes.
"""

import dataclasses
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
    """TransNormer T1 or T2 (Qin et al. 2022): half of the layers in blocks, then NormAttention."""
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
    """A model made of mixers that have names of their own.

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
# A composition goes before a mixer of the same name.
TABLE: dict[str, Mechanism | Composition] = dict(sorted({**MIXERS, **COMPOSITIONS}.items()))
NAMES = tuple(name for name, mechanism in TABLE.items() if mechanism.causal)


def model(name: str, *, num_layers: int, names: Collection[str] = NAMES) -> dict[str, Any]:
    """The entries of `config.model` that a mechanism decides.

    Args:
      name: a name in `TABLE`.
      num_layers: layers of a model of attention and feed-forward.
      names: the names that are allowed; those of causal mechanisms.

    Raises:
      ConfigError: the name is not allowed.
    """
    if name not in names:
        raise ConfigError(f"--config=...:{name}: the variants are {', '.join(names)}")
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
