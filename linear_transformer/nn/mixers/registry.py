"""The table of mixers: the names that a layer pattern may use."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from linear_transformer.config.schema import (
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    UP_TO_ONE,
    check_range,
    check_type,
    meanings,
    unknown,
)
from linear_transformer.nn.mixers.cosformer import CosFormer
from linear_transformer.nn.mixers.delta_net import DeltaNet
from linear_transformer.nn.mixers.diag_attention import DiagAttention
from linear_transformer.nn.mixers.efficient_attention import EfficientAttention
from linear_transformer.nn.mixers.gated_attention_unit import Flash, FlashQuad
from linear_transformer.nn.mixers.gated_delta_net import GatedDeltaNet
from linear_transformer.nn.mixers.gated_linear_attention import GatedLinearAttention
from linear_transformer.nn.mixers.hgrn2 import HGRN2
from linear_transformer.nn.mixers.kimi_delta_attention import KimiDeltaAttention
from linear_transformer.nn.mixers.lightning import LightningAttention
from linear_transformer.nn.mixers.linear_attention import LinearAttention
from linear_transformer.nn.mixers.linformer import Linformer
from linear_transformer.nn.mixers.lion import Lion
from linear_transformer.nn.mixers.local_convolution import LocalConvolution
from linear_transformer.nn.mixers.lru import LRU
from linear_transformer.nn.mixers.lsh_attention import LSHAttention
from linear_transformer.nn.mixers.mamba import Mamba
from linear_transformer.nn.mixers.mamba2 import Mamba2
from linear_transformer.nn.mixers.mlstm import MLSTM
from linear_transformer.nn.mixers.parallel import Parallel
from linear_transformer.nn.mixers.performer import Performer
from linear_transformer.nn.mixers.random_feature_attention import RandomFeatureAttention
from linear_transformer.nn.mixers.rectified_attention import RectifiedAttention
from linear_transformer.nn.mixers.retnet import Retention
from linear_transformer.nn.mixers.rwkv6 import RWKV6
from linear_transformer.nn.mixers.rwkv7 import RWKV7
from linear_transformer.nn.mixers.softmax_attention import SoftmaxAttention

# Arguments of every mixer that the model sets itself.
RESERVED = ("width", "heads", "output_scale", "depth", "dtype", "rngs")


def _parallel(
    width: int,
    heads: int,
    *,
    branches: dict[str, dict[str, Any]] | None = None,
    output_scale: float = 1.0,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Parallel:
    """Mixers of this table side by side.

    Args:
      branches: mixers with their options; None is {"diag": {}, "norm": {}}.
    """
    branches = {"diag": {}, "norm": {}} if branches is None else branches
    given = {"output_scale": output_scale, "dtype": jnp.dtype(dtype), "rngs": rngs}
    mixers = {}
    for name, options in branches.items():
        check_options(name, options, "config.model.mixers.parallel.branches")
        mixers[name] = MIXERS[name](width, heads, **given, **options)
    return Parallel(mixers)


MIXERS: dict[str, Callable[..., nnx.Module]] = {
    "linear": LinearAttention,
    "softmax": SoftmaxAttention,
    "diag": DiagAttention,
    "norm": functools.partial(  # NormAttention (Qin et al. 2022), as in TransNormer T1
        LinearAttention,
        feature_map="elu",
        normalize=False,
        output_norm="simplermsnorm",
        lrpe=True,
    ),
    "parallel": _parallel,
    "flash": Flash,
    "flash_quad": FlashQuad,
    "rela": RectifiedAttention,
    "lsh": LSHAttention,
    "linformer": Linformer,  # bidirectional only
    "convolution": LocalConvolution,  # bidirectional only
    "efficient": EfficientAttention,
    "performer": Performer,
    "cosformer": CosFormer,
    "rfa": RandomFeatureAttention,
    "retnet": Retention,
    "lightning": LightningAttention,
    "lightning_lrpe": functools.partial(LightningAttention, lrpe=True),  # of the first layer
    "mamba2": Mamba2,
    "mlstm": MLSTM,
    "gla": GatedLinearAttention,
    "hgrn2": HGRN2,
    "rwkv6": RWKV6,
    "lion": Lion,
    "mamba": Mamba,
    "lru": LRU,
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "delta_product": functools.partial(GatedDeltaNet, steps=2, negative_eigenvalues=True),
    "kda": KimiDeltaAttention,
    "rwkv7": RWKV7,
}


# Options that bound the length of an input, and one that is that length.
_LONGEST = {"cosformer": "max_length", "linformer": "length"}
OF_LENGTH = _LONGEST | {"flash_quad": "divisor"}

# Mixers that know the order of the tokens by a decay or a convolution, and need no positions.
_ORDERED = frozenset(
    (
        *("retnet", "lightning", "lightning_lrpe", "mamba", "mamba2", "mlstm", "gla", "hgrn2"),
        *("rwkv6", "rwkv7", "lion", "lru", "delta_net", "gated_delta_net", "delta_product", "kda"),
    )
)
# Width of the feed-forward over the model's where it is not 4 (or 8/3 with a gate): units that gate
# themselves have none, and values of twice the width take parameters from it.
_FEED_FORWARD = {"flash": 0, "flash_quad": 0, "mamba": 0, "mamba2": 0, "retnet": 2}

# Numbers that the options of all mixers may have, by their names.
_POSITIVE = (
    *("key_width", "state_width", "value_expansion", "expansion", "features", "groups", "steps"),
    *("gate_rank", "decay_rank", "rate_rank", "mix_rank", "dt_rank", "compressed", "size"),
    *("chunk_size", "block_size", "window", "cache_capacity", "max_length", "length"),
    *("rounds", "buckets", "divisor", "temperature", "scale"),
)
_RANGES = {
    **dict.fromkeys(_POSITIVE, POSITIVE),
    **dict.fromkeys(("epsilon", "convolution", "max_phase"), NOT_NEGATIVE),
    **dict.fromkeys(("r_min", "r_max"), UP_TO_ONE),
    "seed": SEED,
}
# Options that mean the same in all mixers, where a docstring has no more to say of them.
_MEANINGS = {
    "bias": "whether the projections have biases",
    "key_width": "features of queries and keys per head; None is width / heads",
    "expansion": "features inside the unit over the model's width",
    "epsilon": "what is added to denominators",
    "seed": "of the random projections",
    "orthogonal": "whether the random projections are orthogonal in blocks of the key width",
    "rotary": "rotary positions of queries and keys",
    "form": 'how the same function is computed; "auto" chooses',
    "chunk_size": "tokens that are computed at a time; None chooses",
}


def make_mixer(name: str, width: int, heads: int, *, depth: float, **given: Any) -> nnx.Module:
    """A mixer of the table in layer l of L; `depth`, l / L, is for those that start by it."""
    if "depth" in _arguments(name):
        given["depth"] = depth
    return MIXERS[name](width, heads, **given)


def mixer_options(name: str) -> dict[str, inspect.Parameter]:
    """The options of a mixer of the table, with their types and defaults in it."""
    given = getattr(MIXERS[name], "keywords", {})
    return {
        option: parameter.replace(default=given.get(option, parameter.default))
        for option, parameter in _arguments(name).items()
        if option not in ("self", *RESERVED)
    }


def option_meanings(name: str) -> dict[str, str]:
    """What the docstring of a mixer says of its options, by their names."""
    make = MIXERS[name]
    return _MEANINGS | meanings(make.func if isinstance(make, functools.partial) else make)


def knows_order(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a mixer with these options needs no positions."""
    return name in _ORDERED or (name == "linear" and bool(options.get("convolution")))


def feed_forward_ratio(pattern: Sequence[str], gated: bool) -> int | float:
    """Width of the feed-forward over the model's that goes with the mixers of a pattern."""
    usual = 8 / 3 if gated else 4
    ratios = {_FEED_FORWARD.get(name, usual) for name in pattern}
    return ratios.pop() if len(ratios) == 1 else usual


def longest_input(name: str, options: Mapping[str, Any]) -> tuple[str, int] | None:
    """The option of a mixer that bounds the length of its input, and its value; None without."""
    option = _LONGEST.get(name)
    if option is None:
        return None
    return option, options.get(option, of_default(name, option))


def of_default(name: str, option: str) -> Any:
    """The default of an option of a mixer; None where it has to be given."""
    default = mixer_options(name)[option].default
    return None if default is inspect.Parameter.empty else default


def _arguments(name: str) -> Mapping[str, inspect.Parameter]:
    make = MIXERS[name]
    if isinstance(make, functools.partial):
        make = make.func
    if isinstance(make, type):  # a module's own signature is its metaclass's
        make = make.__init__
    return inspect.signature(make).parameters


def check_options(name: str, options: Mapping[str, Any], key: str = "config.model.mixers") -> None:
    """Checks names, types and ranges of a mixer's options.

    Args:
      name: in the table of mixers.
      options: of the mixer, by name.
      key: of the table that has the options, for the message.

    Raises:
      ConfigError: names the mixer or the option, and says what is allowed.
    """
    if name not in MIXERS:
        raise unknown(f"{key}.{name}", MIXERS)
    known = mixer_options(name)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"{key}.{name}.{option}", known)
        check_type(value, known[option].annotation, f"{key}.{name}.{option}")
        if option in _RANGES:
            check_range(value, _RANGES[option], f"{key}.{name}.{option}")
